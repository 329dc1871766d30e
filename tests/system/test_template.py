"""Templates."""

import pytest

from anemos.system.template import render

VALUES = {"name": "mx", "key": "a {{ name }}\\1\n", "_x9": "", "grün": "no"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("", ""),
        ("no value\n", "no value\n"),
        ("{{ name }}", "mx"),
        ("{{name}}{{  name  }}\n", "mxmx\n"),
        ("<{{ _x9 }}>", "<>"),
        ("{{ key }}", "a {{ name }}\\1\n"),  # a value is no template
        ("{{ name }\n}", "{{ name }\n}"),
        ("{ { name } }", "{ { name } }"),
        ("{{{ name }}}", "{mx}"),
        ("{{ 9 }} {{ a-b }} {{ grün }} {{}} {{ }}", "{{ 9 }} {{ a-b }} {{ grün }} {{}} {{ }}"),
        ("{{\nname }}", "{{\nname }}"),
        ("{% if %} ${name} $name %(name)s", "{% if %} ${name} $name %(name)s"),
        ("a\r\nb\rc\x0cd\u2028e", "a\r\nb\rc\x0cd\u2028e"),
    ],
)
def test_render(text: str, result: str) -> None:
    assert render(text, VALUES) == result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ lost }}", "line 1: undefined name 'lost'"),
        ("{{ name }}\n\n x {{ Name }}{{ lost }}\n", "line 3: undefined name 'Name'"),
        ("\r\n{{ lost }}", "line 2: undefined name 'lost'"),
        ("a\x0cb\u2028c\n{{ lost }}", "line 2: undefined name 'lost'"),  # as editors count
    ],
)
def test_undefined(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        render(text, VALUES)
