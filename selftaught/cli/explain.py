"""What jsonargparse says of a wrong option, in the words of every other message here."""

import difflib
import re

from jsonargparse import ArgumentParser, Namespace

from selftaught.errors import InputError

WRONG_VALUE = re.compile(r'Parser key "([^"]+)": .*(?:Got|Given) value: (.*)', re.DOTALL)
EXPECTED = re.compile(r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[([^]]*)\])")
MISSING = re.compile(r"the following arguments are required: (.*)")
UNKNOWN = re.compile(r"unrecognized arguments: (\S+)|Option '([^']+)' is not accepted")
IN_WORDS = {
    "int": "a whole number",
    "float": "a finite number",
    "bool": "true or false",
    "str": "text",
    "list": "a list in brackets, [a,b]",
    "tuple": "values in brackets, [a,b]",
}


def explain(text: str, parser: ArgumentParser) -> str:
    """One line: which option, what was found, what is allowed.

    Args:
        text: jsonargparse's message.
        parser: the one that refused.
    """
    text = re.sub(r'^Parser key "(\w+)": (?=File)', r"\1: ", " ".join(text.split()))
    help_line = f"; `{parser.prog} --help` lists the options"
    wrong, kinds = WRONG_VALUE.search(text), EXPECTED.findall(text)
    if wrong and kinds:
        allowed = " or ".join(
            dict.fromkeys(IN_WORDS.get(kind, kind) or one.replace("'", "") for kind, one in kinds)
        )
        return f"{wrong[1]} is {wrong[2]!r}; allowed: {allowed}{help_line}"
    options = re.findall(r"--([\w.]+)", parser.format_usage())
    if missing := MISSING.fullmatch(text):
        names = [f"--{name}" if name in options else name for name in missing[1].split(", ")]
        return f"{', '.join(names)}: missing, but needed{help_line}"
    hint = ""
    if unknown := UNKNOWN.search(text):
        name = (unknown[1] or unknown[2]).lstrip("-").partition("=")[0]
        near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
        hint = f"; did you mean --{near[0]}?" if near else ""
    return f"{text}{hint}{help_line}"


def refuse_holes(given: Namespace, expected: Namespace, prefix: str = "") -> None:
    """Refuse a file that leaves an option empty, or gives one value to a group of options.

    jsonargparse takes both, and would leave out the group or fail far from here.

    Args:
        given: what was parsed.
        expected: the parser's defaults.
        prefix: names of the groups around, each with a dot.

    Raises:
        InputError: names the option.
    """
    for name, default in vars(expected).items():
        value = getattr(given, name, None)
        if isinstance(default, Namespace):
            if not isinstance(value, Namespace):
                raise InputError(f"{prefix}{name} is {value!r}; allowed: options of its own below")
            refuse_holes(value, default, f"{prefix}{name}.")
        elif value is None and default is not None:
            raise InputError(f"{prefix}{name} is empty; allowed: a value, or no such line")
