"""The unattended measurement of an accelerator: its order, its limits, its page. What it measures needs minutes."""

import time

from scripts.bench import accelerator


def test_parts_that_do_not_fit_in_time_or_memory_say_so():
    def slow():
        time.sleep(0.3)
        return {"tokens_per_second": 1.0}

    def broken():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")

    found = accelerator.measure({"a": slow, "b": broken, "c": slow}, minutes=15.2 / 60)
    assert found["a"]["tokens_per_second"] == 1.0
    assert "s were left" in found["b"]["left_out"] or "out of memory" in found["b"]["left_out"]
    assert "s were left" in found["c"]["left_out"]
    assert accelerator.measure({"b": broken}, minutes=1)["b"]["left_out"] == "RuntimeError: out of memory"


def test_the_page_names_the_card():
    parts = {"train": {"plain": {"step_seconds": 0.5, "share_of_peak": None}, "part_seconds": 1.0}}
    text = accelerator.page({"card": "NVIDIA H100", "small": False, "parts": parts, "minutes": 1.0})
    assert text.startswith("# NVIDIA H100\n") and "| train | plain: step seconds 0.5 |" in text


def test_peaks_are_known_by_name():
    assert accelerator.peak("NVIDIA H100 80GB HBM3") == 989e12
    assert accelerator.peak("NVIDIA H100 PCIe") == 756e12 and accelerator.peak("cpu") is None


def test_every_shape_is_a_model():
    for name, work in accelerator.plan(False, None).items():
        assert callable(work), name
    for name in ("smollm2-135m", "1.7b", "8b", "14b", "32b"):
        assert accelerator.parts.shape(name).num_layers >= 24
