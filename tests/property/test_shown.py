"""No drawn secret and no drawn control sequence reaches what people are shown, in any sink."""

from __future__ import annotations

import json
import logging
import re
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from io import StringIO

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from exodus.cli.output import say, show, show_error, show_json, show_table
from exodus.closing.report import render
from exodus.errors import ExodusError, OperatorError, SourceError
from exodus.plan.address import Address
from exodus.plan.migration_file import load_migration
from exodus.safe_text import LogFormatter, lines, markdown, mask_logs, masked, plain, remember
from tasks.artifacts import _cell

pytestmark = pytest.mark.property
_RENDERER = MarkdownIt("commonmark").enable(["table", "strikethrough"])

# A secret is made of words that stand in no message, and of what URLs, YAML and terminals give a
# meaning.
_WORD = st.text(alphabet="QXZJKVWY0123456789", min_size=6, max_size=9).map(lambda word: f"Q{word}")
_BETWEEN = st.sampled_from([*"/#?@:%&=+ !*'\"[]{},<>|\\^`~", "://", "%2F", ""])
SECRETS = st.lists(st.tuples(_WORD, _BETWEEN), min_size=1, max_size=4).map(
    lambda parts: "".join(word + between for word, between in parts)
)
_HOSTILE = st.one_of(
    st.text(min_size=1, max_size=40),
    st.sampled_from(
        [
            "[/red]",
            "[bold red]x",
            "[link=http://x]y[/link]",
            "\x1b[2J\x1b]0;title\x07",
            "\x9b31m",
            "a\nerror: forged",
            "\u202etxt.exe",
            "a\rb",
            "<script>alert(1)</script>",
            "[click](javascript:alert(1))",
            "![x](http://x/y.png)",
            "|a|b|",
            "`code`",
            "**b**",
            "# head",
            "&lt;b&gt;",
            "http://evil.invalid",
            "\ud800",
            "\x00",
        ]
    ),
)


def _words(secret: str) -> list[str]:
    return re.findall(r"Q[QXZJKVWY0-9]{6,9}", secret)


def _leaks(secret: str, text: str) -> list[str]:
    return [word for word in _words(secret) if word in text]


_SHAPES = st.sampled_from(
    [
        "redis://u:{}@h:6379",
        "redis://:{}@h",
        "rediss://u:{}@h:6379/0",
        "redis://{}@h:1x",
        "redis://u:{}@",
        "{}",
        "redis:{}@h",
        "http://u:{}@h",
        "redis://u:x@h/{}",
        "redis://[{}]@h",
    ]
)


@given(SECRETS, _SHAPES)
def test_no_part_of_a_url_s_password_is_in_an_error(secret: str, shape: str) -> None:
    try:
        address = Address.parse(shape.format(secret), field="source")
    except OperatorError as exc:
        assert _leaks(secret, f"{exc} {exc!r} {exc.args} {exc.__cause__}") == []
    else:
        if address.password is not None:
            shown = f"{address!r} {address.url} {address.model_dump_json()}"
            assert _leaks(address.password.get_secret_value(), shown) == []


_FIELDS = st.sampled_from(
    [
        "pasword",
        "passwd",
        "password_fil",
        "pass",
        "auth",
        "Password",
        "secret",
        "password",
        "password_env",
        "password_file",
        "ca_fil",
    ]
)
_SECTIONS = st.sampled_from(["source", "target", "control_store", "logins", "gateway", "", "value"])


@given(SECRETS, _FIELDS, _SECTIONS)
def test_no_value_of_a_misspelt_field_is_in_an_error(
    tmp_path_factory: pytest.TempPathFactory, secret: str, field: str, section: str
) -> None:
    document: dict[str, object] = {
        name: {"url": "redis://h:1"} for name in ("source", "target", "control_store")
    }
    document["name"] = "orders"
    if section == "":
        document[field] = secret
    elif section == "logins":
        document["logins"] = [{"user": "shop", "target_password_file": "x", field: secret}]
    elif section == "value":
        document["source"] = {"url": [secret], field: secret}
    elif section == "gateway":
        document["gateway"] = {field: secret}
    else:
        document[section] = {"url": "redis://h:1", field: secret}
    path = tmp_path_factory.getbasetemp() / "migration.yaml"
    path.write_text(yaml.safe_dump(document))
    try:
        file = load_migration(path)
        for name in ("source", "target"):
            getattr(file.plan, name).secret(name)
        file.control_store.secret("control_store")
    except ExodusError as exc:
        assert _leaks(secret, f"{exc} {exc!r} {exc.__cause__}") == []


@given(SECRETS)
def test_no_line_of_a_broken_file_is_in_an_error(
    tmp_path_factory: pytest.TempPathFactory, secret: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "broken.yaml"
    for text in (
        f"source: {{password: {secret}\n- a",
        f"a: *{secret}",
        f"a: !{secret} b",
        f"source:\n  url: 'redis://u:{secret}@h\n",
    ):
        path.write_text(text)
        with pytest.raises(OperatorError) as caught:
            load_migration(path)
        assert _leaks(secret, f"{caught.value} {caught.value.__cause__}") == []


def _printed(secret: str) -> str:
    """Return what all sinks make of a text."""
    words = StringIO()
    with redirect_stdout(words), redirect_stderr(words):
        say(secret)
        show(secret)
        show_error(SourceError(secret, why=secret, next_step=secret))
        show_json({"a": [secret], secret: 1})
        show_table("t", ["a", "b"], [[secret, 1]])
    record = logging.LogRecord("exodus", logging.ERROR, "", 0, "said %s", (secret,), None)
    page = render(
        {
            "plan": {"name": secret, "field": secret},
            "report.x": {"a": secret, "rows": [{"b": secret}]},
        }
    )
    return "".join(
        [
            words.getvalue(),
            LogFormatter("%(message)s").format(record),
            markdown(secret),
            str(_cell(secret)),
            page,
        ]
    )


@given(SECRETS)
def test_a_secret_that_was_read_is_in_no_sink(secret: str) -> None:
    remember(secret)
    for text in (secret, f"WRONGPASS for {secret}", f"'{secret}' was refused"):
        assert _leaks(secret, _printed(text)) == []


def _refuse(secret: str) -> None:
    raise ValueError(f"cannot use {secret}")


def test_a_secret_is_in_no_log_of_a_flow_whoever_formats_it() -> None:
    """Prefect's handlers format the records, including tracebacks of others' exceptions."""
    secret, before, words = (
        remember("QXZJ-secret/of#a@server"),
        logging.getLogRecordFactory(),
        StringIO(),
    )
    handler = logging.StreamHandler(words)
    log = logging.getLogger("a flow's")
    log.addHandler(handler)
    log.propagate = False
    mask_logs()
    try:
        try:
            _refuse(secret)
        except ValueError:
            log.exception("tried %s", secret)
        misfit = "%s and %s"
        log.error(misfit, f"one argument, and {secret}")
        log.error("redis://u:%s@h:1", "another/QXZJ")
        log.error("the key %s", "a\nERROR forged")
    finally:
        logging.setLogRecordFactory(before)
        log.removeHandler(handler)
    # Other secrets that this process knows are masked, too
    assert words.getvalue().count("***") >= 4
    assert "QXZJ" not in words.getvalue()
    assert "ValueError: cannot use ***" in words.getvalue()
    assert "the key a\n    ERROR forged" in words.getvalue()


@given(
    st.text(alphabet="QXZJKVWY0123456789/#?:%&=+!*[]{},|^`~", min_size=6, max_size=30),
    st.sampled_from(["", ".", " is away", "/0"]),
)
def test_a_url_in_any_text_is_masked(password: str, after: str) -> None:
    text = f"cannot reach redis://shop:{password}@10.0.0.5:6379{after}"
    assert masked(text) == f"cannot reach redis://shop:***@10.0.0.5:6379{after}"
    assert (
        masked("redis://exodus@h:6379 and rediss://h:1") == "redis://exodus@h:6379 and rediss://h:1"
    )


@given(_HOSTILE)
def test_a_terminal_and_a_log_obey_nothing(text: str) -> None:
    words = StringIO()
    with redirect_stdout(words), redirect_stderr(words):
        show_table("connected", ["client"], [[text], [f"[/{text}]"]])
        say(f"client {plain(text)}")
        show_json({text: text})
    shown = words.getvalue() + LogFormatter("%(message)s").format(
        logging.LogRecord("x", logging.INFO, "", 0, "%s", (text,), None)
    )
    assert [char for char in shown if not char.isprintable() and char != "\n"] == []
    assert plain(text).isprintable()
    assert "\n" not in plain(text)
    assert all(line.isprintable() for line in lines(text).split("\n"))
    shown_log = LogFormatter("%(message)s").format(
        logging.LogRecord("x", logging.INFO, "", 0, "%s", (text,), None)
    )
    assert all(line.startswith("    ") for line in shown_log.split("\n")[1:])


@given(_HOSTILE, _HOSTILE)
def test_no_text_begins_a_line_that_exodus_never_wrote(text: str, more: str) -> None:
    """A key or a name with a line end in it could show another verdict, or another error."""
    words = StringIO()
    with redirect_stdout(words), redirect_stderr(words):
        show(f"  db0 {text}: differs")
        say(f"warning: {text}", f"  {more}")
    shown = words.getvalue().split("\n")
    assert len(shown) == 4
    assert [line[:2] for line in shown] == ["  ", "wa", "  ", ""]
    words = StringIO()
    with redirect_stderr(words):
        show_error(SourceError(text, why=more, next_step=text))
    first, *others = words.getvalue().removesuffix("\n").split("\n")
    assert first.startswith("error: ")
    heads = [line[:8] for line in others if not line.startswith(" " * 8)]
    assert heads == ["  why:  ", "  next: "]


@given(_HOSTILE)
def test_json_stays_json(text: str) -> None:
    words = StringIO()
    with redirect_stdout(words):
        show_json({"name": text, "rows": [{"b": text}]})
    found = json.loads(words.getvalue())
    assert found["name"] == lines(text) == found["rows"][0]["b"]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@given(_HOSTILE)
def test_a_report_has_its_own_tags_only(text: str) -> None:
    page = _Tags()
    page.feed(render({"plan": {"name": text}, "report.x": {"a": text, "rows": [{"b": text}]}}))
    page.close()
    assert page.tags <= {
        "html",
        "meta",
        "title",
        "style",
        "h1",
        "h2",
        "h3",
        "div",
        "table",
        "tr",
        "th",
        "td",
    }
    assert plain(text) in page.text


@example("100.00 % verified")
@example("1) first")
@given(_HOSTILE)
def test_markdown_shows_a_text_as_it_is(text: str) -> None:
    """As markdown-it, which follows CommonMark, renders it: one paragraph with the same text and
    nothing else.
    """
    rendered = _Tags()
    rendered.feed(_RENDERER.render(markdown(text)))
    rendered.close()
    assert rendered.tags <= {"p"}
    assert (
        rendered.text.strip() == " ".join(plain(text).split())
        or rendered.text.strip() == plain(text).strip()
    )


def test_a_wide_table_is_whole_where_the_output_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before, twelve columns of a report shared 80 characters: nobody could read a name."""
    columns = [f"column_{number:02}" for number in range(20)]
    show_table("t", columns, [[f"{column} value" for column in columns]])
    shown = capsys.readouterr().out
    assert all(f"{column} value" in shown for column in columns)
