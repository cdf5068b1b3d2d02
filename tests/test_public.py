"""What a person sees who asks the packages for help, and that shapes are checked while the suite runs."""

import pydoc
import re

import jaxtyping
import numpy as np
import pytest

import rewards
import rlhf
from rewards.basis import likelihood


@pytest.mark.parametrize("package", [rlhf, rewards], ids=lambda package: package.__name__)
def test_help_documents_what_is_public_and_nothing_else(package):
    """Python lists the folders of any package (PACKAGE CONTENTS); classes, functions and data are ours to choose."""
    text = pydoc.render_doc(package, renderer=pydoc.plaintext)
    sections = dict(re.findall(r"^([A-Z ]+)\n(.*?)(?=^[A-Z]|\Z)", text, re.M | re.S))
    classes = re.findall(r"^    class (\w+)", sections["CLASSES"], re.M)
    functions = re.findall(r"^    (\w+)\(", sections["FUNCTIONS"], re.M)
    assert sorted(classes + functions) == sorted(package.__all__)
    assert "DATA" not in sections


def test_a_wrong_shape_and_a_wrong_kind_of_number_are_refused():
    margin = np.zeros(3, np.float32)
    for lapse in (np.zeros(2, np.float32), np.zeros((), np.int32)):
        with pytest.raises(jaxtyping.TypeCheckError):
            likelihood.log_probability(margin, lapse)
