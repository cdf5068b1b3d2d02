"""Chat templates are programs: bounded ones cost and make no more than a conversation needs, and change nothing else."""

import datetime

import pytest
from transformers.utils import chat_template_utils

from rlhf.models import chat
from tests.rlhf.models.test_text_borders import CHATML, GEMMA, LLAMA2

DATE = datetime.date(2025, 1, 1)
DOUBLED = (
    "{%% set ns = namespace(s=%s) %%}{%% for i in range(60) %%}{%% set ns.s = %s %%}{%% endfor %%}{{ ns.s }}"
)
HOSTILE = {
    "loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x"
    "{% endfor %}{% endfor %}{% endfor %}",
    "silent loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops over filters": "{% for a in range(9999)|map('string') %}{% for b in range(9999)|map('string') %}"
    "{% endfor %}{% endfor %}",
    "a loop of long texts": "{% set t %}{% for a in range(99999) %}" + "y" * 9000 + "{% endfor %}{% endset %}{{ t|length }}",
    "macros that branch": "{% macro f(n) %}{{ f(n-1) }}{{ f(n-1) }}{% if n %}{% endif %}{% endmacro %}{{ f(9) }}",
    "calls in loops": "{% macro g() %}{% for a in range(9999) %}{{ caller() }}{% endfor %}{% endmacro %}"
    "{% call g() %}{% call g() %}z{% endcall %}{% endcall %}",
    "repeated": "{{ 'x' * 10000000000 }}",
    "repeated list": "{{ ([0] * 10000000000)|length }}", "power": "{{ (9**(9**9)) > 1 }}",
    "squares": "{% set ns = namespace(n=7) %}{% for i in range(90) %}{% set ns.n = ns.n*ns.n %}{% endfor %}{{ ns.n > 3 }}",
    "wide": "{{ 'x'|center(10000000000) }}",
    "wide method": "{{ 'x'.ljust(10000000000) }}", "zeros": "{{ '1'.zfill(9999999999) }}",
    "wide format": "{{ '%10000000000d' % 1 }}", "wide by argument": "{{ '%*d' % (10000000000, 1) }}",
    "wide format method": "{{ '{:>10000000000}'.format(1) }}",
    "wide format filter": "{{ '%10000000000d'|format(1) }}",
    "wide block": "{% filter center(10000000000) %}x{% endfilter %}", "bytes": "{{ (1).to_bytes(9999999999)|length }}",
    "replaced": "{% set s = 'x'*100000 %}{{ s|replace('x', s)|length }}", "joined": "{{ range(90000)|join('x'*100000)|length }}",
    "indented": "{{ '\n'.join(range(99999)|map('string'))|indent(100000)|length }}",
    "padded": "{{ [1]|batch(10**10, 'x')|list }}",
    "sum doubled": DOUBLED % ("'x'", "ns.s + ns.s"), "text doubled": DOUBLED % ("'x'", "ns.s ~ ns.s"),
    "list doubled": DOUBLED % ("[1]", "[ns.s, ns.s]"), "map doubled": DOUBLED % ("1", "{'a': ns.s, 'b': ns.s}"),
    "namespace doubled": DOUBLED % ("1", "namespace(a=ns.s, b=ns.s)"), "call doubled": DOUBLED % ("1", "dict(a=ns.s, b=ns.s)"),
    "cuts": "{% set s = 'x'*1000000 %}{% for a in range(99999) %}{% set t = s[1:] %}{% endfor %}",
    "comparisons": "{% set s = 'x'*1000000 %}{% for a in range(99999) %}{% if s == s ~ '' %}{% endif %}{% endfor %}",
    "words of its own": "{{ lipsum(n=1000000) }}", "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}  # fmt: skip
EVERYTHING = (
    "{%- set ns = namespace(found=false, parts=[]) -%}{%- macro say(m, wide=false) -%}<{{ m.role|upper }}>{{ m.content|trim }}"
    "{%- endmacro -%}{%- for m in messages[1:] + messages[:1] -%}"
    "{%- if loop.first and not ns.found -%}{{ bos or '' }}{%- endif -%}"
    "{%- if m.role in ['user', 'tool'] -%}{%- set ns.found = true -%}{{ say(m) }}{%- elif m['role'] == 'assistant' -%}"
    "{%- set content = m.content.split('</think>')[-1].lstrip('\n') -%}{{ '|' ~ content ~ loop.index0 ~ loop.length }}"
    "{%- else -%}{{ m|tojson }}{{ '%s-%03d' % (m.role, loop.index) }}{{ '{:>8}'.format(m.role) }}{%- endif -%}"
    "{%- if not loop.last -%}{{ loop.nextitem.role }}{%- endif -%}{%- else -%}nobody{%- endfor -%}"
    "{%- for k, v in messages[0].items() if k != 'x' -%}{{ k }}={{ v|replace('e', 'E') }}"
    "{% if loop.index > 5 %}{% break %}{% endif %}{%- endfor -%}"
    "{{ messages|map(attribute='role')|unique|join(', ') }}{{ [1, 2]|sum }}{{ {'a': (1, 2)}|tojson(indent=2) }}"
    "{{ undefined_name }}{%- filter upper -%}end{%- endfilter -%}{%- set block -%}kept{%- endset -%}{{ block }}"
    "{{ 'x' * 3 }}{{ [0] * 2 }}{{ 2 ** 8 % 7 }}"
    "{{ strftime_now('%d %b %Y') if false else '' }}{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
)
CONVERSATIONS = [
    [{"role": "user", "content": "Which ?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " 1 < 2 & \u00e9\U0001f600 "},
        {"role": "assistant", "content": "<think>\nx</think>\n yes"},
    ],
    [{"role": role, "content": "words " * 20_000} for role in ("user", "assistant", "user")],
    [{"role": ("user", "assistant")[n % 2], "content": f"turn {n}"} for n in range(1001)],
]


def rendered(template, messages):
    with chat.bounded(DATE, sum(len(message["content"]) for message in messages)):
        return unbounded(template, messages)


def unbounded(template, messages):
    names = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    return chat_template_utils.render_jinja_template([messages], chat_template=template, **names)[0][0]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_grows_without_end_is_stopped(name):
    sandbox_errors = "takes more|makes more|beyond 1000000|lipsum|recursion|too many"
    with pytest.raises(Exception, match=sandbox_errors):
        rendered(HOSTILE[name], CONVERSATIONS[0])


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["short", "roles", "long", "many"])
@pytest.mark.parametrize(
    "template", [CHATML, LLAMA2, GEMMA, EVERYTHING], ids=["chatml", "llama", "gemma", "everything"]
)
def test_what_others_render_is_rendered_alike(template, messages):
    assert rendered(template, messages) == unbounded(template, messages)


def test_the_date_is_the_one_given():
    assert rendered("{{ strftime_now('%d %B %Y') }}", CONVERSATIONS[0]) == "01 January 2025"
