"""Bad files of options and of problems: name -> (content, a part of the sentence that answers it)."""

from itertools import pairwise as pairs

Texts = dict[str, tuple[str | bytes, str]]

# Files that name their task; a flag for another one would drop their parameters.
CONFIGS_OF_TASKS: Texts = {
    "task params": (
        "task: addition\nmodel: ../tiny\ntask_params: {mox: 3}\n",
        "has no parameter 'mox'. Did you mean 'max'?",
    ),
}

CONFIGS: Texts = {
    "key": ("learnig_rate: 1\n", "c.yaml: unknown option 'learnig_rate'. Did you mean 'learning_rate'?"),
    "far key": ("frobnicate: 1\n", "c.yaml: unknown option 'frobnicate'."),
    "number as key": ("1: 2\n", "c.yaml: unknown option 1."),
    "double key": (
        "task: addition\nsteps: 1\nseed: 2\nsteps: 3\n",
        "c.yaml, line 4: key 'steps' stands on line 2 already",
    ),
    "double key below": ("trl:\n  top_k: 1\n  top_k: 2\n", "c.yaml, line 3: key 'top_k' stands on line 2 already"),
    "double key in a line": ("trl: {top_k: 1, top_k: 2}\n", "c.yaml, line 1: key 'top_k' stands on line 1 already"),
    "clock": ("seed: 0\nsteps: 1:30\n", "c.yaml, line 2: YAML reads 1:30 in base 60, as 90; write 90, or quotes"),
    "clock with seconds": ("verifier_timeout: 1:30.5\n", "c.yaml, line 1: YAML reads 1:30.5 in base 60, as 90.5"),
    "negative clock": ("steps: -1:30\n", "line 1: YAML reads -1:30 in base 60, as -90"),
    "octal": ("steps: 010\n", "c.yaml, line 1: YAML reads 010 in base 8, as 8; write 8, or quotes"),
    "octal below": ("task_params:\n  max: 011\n", "c.yaml, line 2: YAML reads 011 in base 8, as 9"),
    "octal in a list": ("eval_temperatures: [1, 02]\n", "c.yaml, line 1: YAML reads 02 in base 8, as 2"),
    "no octal": ("steps: 09\n", "c.yaml: option 'steps' must be int, not '09'"),
    "brackets": ("a: " + "[" * 5000, "c.yaml, line 1: brackets are nested more than 50 deep"),
    "closed brackets": ("a: " + "[" * 5000 + "]" * 5000, "c.yaml, line 1: brackets are nested more than 50 deep"),
    "braces": ("a: " + "{a: " * 5000, "c.yaml, line 1: brackets are nested more than 50 deep"),
    "dashes": ("- " * 1000 + "1\n", "c.yaml: nested too deep"),
    "aliases": (
        "a: &a [x, x]\n"
        + "".join(f"{b}: &{b} [{','.join(f'*{a}' for _ in range(9))}]\n" for a, b in pairs("abcdefgh")),
        "more than 100,000 values",
    ),
    "alias in itself": ("trl: &a {b: *a}\n", "c.yaml, line 1: an alias stands in what it names"),
    "long alias": ("a: &a " + "x" * 9_999 + "\nb: [" + "*a, " * 2_000 + "]\n", "more than 100,000 values"),
    "beyond a float": ("learning_rate: " + "9" * 400 + "\n", "option 'learning_rate' must be float, not 999"),
    "zero byte": ('output: "a\\0b"\n', "output is 'a\\x00b'; it must not hold a zero byte"),
    "broken": ("task: [a\nb: c\n", "c.yaml, line 2: not valid YAML: expected ',' or ']', but got ':'."),
    "tab": ("trl:\n\ttop_k: 1\n", "c.yaml, line 2: not valid YAML"),
    "anchor": ("task: *a\n", "c.yaml, line 1: not valid YAML: found undefined alias 'a'"),
    "object": (
        "task: !!python/object:os.system a\n",
        "c.yaml, line 1: not valid YAML: could not determine a constructor",
    ),
    "two documents": ("steps: 1\n---\nsteps: 2\n", "not valid YAML"),
    "date": ("steps: 2024-13-45\n", "c.yaml: not valid YAML: month must be in 1..12"),
    "type": ("steps: many\n", "c.yaml: option 'steps' must be int, not 'many'"),
    "bool": ("steps: true\n", "c.yaml: option 'steps' must be int, not True"),
    "float": ("steps: 1e2\n", "c.yaml: option 'steps' must be int, not 100.0"),
    "null": ("steps: null\n", "c.yaml: option 'steps' must be int, not None"),
    "no": ("method: no\n", "c.yaml: option 'method' must be str, not False"),
    "number as text": ("task: 3\n", "c.yaml: option 'task' must be str, not 3"),
    "text as switch": ("evaluate: maybe\n", "c.yaml: option 'evaluate' must be bool, not 'maybe'"),
    "text as number": ("learning_rate: fast\n", "c.yaml: option 'learning_rate' must be float, not 'fast'"),
    "nan": ("learning_rate: .nan\n", "learning_rate is nan; it must be finite"),
    "mapping": ("weighting_kwargs: 3\n", "c.yaml: option 'weighting_kwargs' must be dict, not 3"),
    "list as mapping": ("trl: [top_k]\n", "c.yaml: option 'trl' must be dict, not ['top_k']"),
    "item": ("eval_temperatures: [hot]\n", "an item of c.yaml: option 'eval_temperatures' must be float, not 'hot'"),
    "text as list": ("report_to: wandb\n", "c.yaml: option 'report_to' must be list, not 'wandb'"),
    "empty output": ("output: ''\n", "output is empty"),
    "value": ("save_steps: 0\n", "save_steps is 0; it must be at least 1"),
    "trl": ("trl: {top_p_: 1}\n", "GRPOConfig has no option 'top_p_'. Did you mean 'top_p'?"),
    "list": ("- a\n", "config c.yaml must be a mapping of options, not list"),
    "text": ("addition\n", "config c.yaml must be a mapping of options, not str"),
    "empty": ("", "config c.yaml must be a mapping of options, not NoneType"),
    "binary": ("\0", "config c.yaml: not valid YAML"),
    "no UTF-8": (b"task: \xff\n", "config c.yaml: not valid UTF-8"),
}

GOOD_LINE = '{"problem": "1+1?", "answer": "2"}\n'
LINES: Texts = {
    "broken": (GOOD_LINE + "{oops\n", "p.jsonl, line 2: not valid JSON"),
    "torn": (GOOD_LINE + '{"problem": "a", "ans', "p.jsonl, line 2: not valid JSON"),
    "no UTF-8": (b'{"problem": "\xff", "answer": "1"}\n', "p.jsonl, line 1: not valid JSON"),
    "UTF-16": (GOOD_LINE.encode("utf-16"), "p.jsonl, line 1: not valid JSON"),
    "deep": ("[" * 100_000 + "\n", "p.jsonl, line 1: not valid JSON"),
    "list": ("[1]\n", "p.jsonl, line 1: a JSON object is expected, not list"),
    "text": ('"a"\n', "p.jsonl, line 1: a JSON object is expected, not str"),
    "null": ("null\n", "p.jsonl, line 1: a JSON object is expected, not NoneType"),
    "empty": ("", "p.jsonl: the file holds no problem"),
    "blank": ("\n \n", "p.jsonl: the file holds no problem"),
    "no answer": ('\n{"problem": "a"}\n', "p.jsonl, line 2: field 'answer' is missing"),
    "no problem": ('{"answer": "a"}\n', "p.jsonl, line 1: field 'problem' is missing"),
    "empty answer": ('{"problem": "a", "answer": " "}\n', "p.jsonl, line 1: field 'answer' is empty"),
    "null answer": ('{"problem": "a", "answer": null}\n', "field 'answer' must be text or a number, not null"),
    "true answer": ('{"problem": "a", "answer": true}\n', "field 'answer' must be text or a number, not true"),
    "listed answer": ('{"problem": "a", "answer": ["1"]}\n', "field 'answer' must be text or a number, not [\"1\"]"),
    "nan answer": ('{"problem": "a", "answer": NaN}\n', "p.jsonl, line 1: NaN is no number; write text in quotes"),
    "infinite answer": ('{"problem": "a", "answer": -Infinity}\n', "p.jsonl, line 1: -Infinity is no number"),
    "huge answer": (GOOD_LINE + '{"problem": "a", "answer": 1e999}\n', "line 2: 1e999 is beyond the range of a float"),
    "huge digits": ('{"problem": "a", "answer": ' + "9" * 5000 + "}\n", "p.jsonl, line 1: not valid JSON"),
    "field twice": ('{"problem": "a", "answer": "1", "answer": "2"}\n', "line 1: field 'answer' is given twice"),
    "inner field twice": ('{"problem": "a", "answer": "1", "x": {"b": 1, "b": 1}}\n', "field 'b' is given twice"),
    "half a character": ('{"problem": "\\ud800", "answer": "1"}\n', "line 1: \\ud800 is half of a character"),
    "half in the answer": ('{"problem": "a", "answer": "\\uDFFF"}\n', "line 1: \\udfff is half of a character"),
    "id twice": (
        '{"problem": "a", "answer": "1", "id": 7}\n{"problem": "b", "answer": "1", "id": "7"}\n',
        "line 2: field 'id' repeats '7' of p.jsonl, line 1",
    ),
    "empty id": ('{"problem": "a", "answer": "1", "id": ""}\n', "p.jsonl, line 1: field 'id' is empty"),
}
