"""JSON lines with torn ends, files that are written whole or not at all, and what a mistyped name was meant to be."""

import json

import pytest

from covgrpo.errors import UserError
from covgrpo.files import json_objects, load_json, read_json_lines, replacing, user_path, write_text
from covgrpo.suggest import check_choice, did_you_mean, did_you_mean_or_known, nearest


def test_every_line_is_read_and_a_torn_end_is_told(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n[2]\r\n{"b"}\n"\xff"\n' + b"[" * 100_000 + b'\n{"c": 3')
    lines = list(read_json_lines(path))
    assert [line.number for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert [line.value for line in lines] == [{"a": 1}, None, [2], None, None, None, None]
    assert [line.error is None for line in lines] == [True, False, True, False, False, False, False]
    assert [line.ended for line in lines] == [True] * 6 + [False]
    assert (lines[0].raw, lines[2].raw, lines[6].raw) == (b'{"a": 1}', b"[2]\r", b'{"c": 3')


def test_a_last_line_without_its_end_may_be_whole(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}')
    (line,) = read_json_lines(path)
    assert (line.value, line.error, line.ended) == ({"a": 1}, None, False)


def test_a_users_file_may_have_blank_lines_and_no_other_damage(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\n{"a": 1}\n  \n{"b": 2}')
    assert list(json_objects(path, read_json_lines(path))) == [
        (f"{path}, line 2", {"a": 1}),
        (f"{path}, line 4", {"b": 2}),
    ]
    for damaged, says in (
        (b"[1]\n", "line 1: a JSON object is expected, not list."),
        (b'{}\n{"a":\n', r"line 2: not valid JSON \(Expecting value: line 1 column 6 \(char 5\)\)."),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=says):
            list(json_objects(path, read_json_lines(path)))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path, beside = tmp_path / "kept.json", tmp_path / "elsewhere.part"
    path.write_text("old")
    for place in (None, beside):
        with pytest.raises(KeyboardInterrupt), replacing(path, place) as file:
            file.write("half")
            raise KeyboardInterrupt
        assert path.read_text() == "old"
        assert [found.name for found in tmp_path.iterdir()] == ["kept.json"]
    with replacing(path, beside) as file:
        file.write("new")
        file.flush()
        assert (path.read_text(), beside.read_text()) == ("old", "new")
    assert path.read_text() == "new"
    assert [found.name for found in tmp_path.iterdir()] == ["kept.json"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "inner.txt"
    with pytest.raises(UserError, match=rf"^cannot write {target} \((not a directory|file exists)\)\.$"):
        write_text(target, "text")


def test_the_nearest_name_is_suggested():
    known = ("gaussian", "gaussian_raw", "none")
    assert nearest("gausian", known) == "gaussian"
    assert nearest("xyz", known) is None
    assert did_you_mean("gausian", known) == " Did you mean 'gaussian'?"
    assert did_you_mean("xyz", known) == ""
    # "nxne" is 0.75 like "none"
    assert (nearest("nxne", known, cutoff=0.7), nearest("nxne", known, cutoff=0.8)) == ("none", None)


def test_few_names_are_listed_where_none_is_near():
    assert did_you_mean_or_known("nona", ["none", "all"]) == " Did you mean 'none'?"
    assert did_you_mean_or_known("xyz", ["none", "all"]) == " Known: all, none."
    assert did_you_mean_or_known("xyz", [f"number{i}" for i in range(13)]) == ""


def test_a_choice_is_refused_with_a_hint():
    check_choice("scope", "group", ("group", "batch"))
    with pytest.raises(UserError, match=r"^scope 'grup' is unknown; did you mean 'group'\?$"):
        check_choice("scope", "grup", ("group", "batch"))
    with pytest.raises(UserError, match=r"^scope 'xyz' is unknown; known: group, batch\.$"):
        check_choice("scope", "xyz", ("group", "batch"))


def test_half_of_a_character_is_written_as_json_writes_it(tmp_path):
    write_text(tmp_path / "a.json", json.dumps("a\ud800", ensure_ascii=False))
    with replacing(tmp_path / "b.json") as file:
        json.dump("a\ud800", file, ensure_ascii=False)
    for name in ("a.json", "b.json"):
        assert (tmp_path / name).read_bytes() == b'"a\\ud800"' and load_json(tmp_path / name) == "a\ud800"


def test_json_deeper_than_python_reads_is_a_value_error(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deep"):
        load_json(tmp_path / "a.json")


def test_a_home_that_is_none_is_a_name(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert [str(user_path(text)) for text in ("~/a", "~nobody-here/a", "a~")] == [
        "/somewhere/a",
        "~nobody-here/a",
        "a~",
    ]
