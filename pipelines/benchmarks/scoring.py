"""Reading the option that an answer names, by our rule and by the published ones.

Ours never guesses: an answer that names no option, or more than one, is unparsed, counts as wrong and is shown.
"""

import re
import zlib
from collections.abc import Sequence
from typing import Literal

LETTERS = "ABCDEFGHIJ"
PublishedRule = Literal["before_bracket", "first_letter", "first_letter_or_random"]

# What may stand before the option that is named.
_CUE = re.compile(
    r"\b(?:(?:final|best|correct|right|my)\s+)*(?:answer|option|choice)\s*(?:is|:|would\s+be|=)+\s*(?:option|choice)?\s*",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"\*+|_{2,}|`+|\$|\\(?:boxed|text)\s*\{|\\[()\[\]]|[{}]|</?\w+>")
_JOINED = re.compile(r"\W*(?:,|/|&|\band\b|\bor\b|\(|\s)\W*([A-J])(?!\w|')", re.IGNORECASE)
# What lmms-eval cuts out of an answer before it takes the first letter, in its order.
_PREFIXES = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer", "The best option is"),
    *("The correct option is", "Best answer:", "Best option:"),
)


def parse_answer(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer names, None if it names none or several.

    In this order: the whole answer is one option's text; after "answer is", "option:" and the like stands a letter or
    an option's text, the same at every such place; the answer begins with a letter. A letter counts in capitals, or
    small when it stands alone, in brackets or before a mark; the words "A" and "I" are no letters.
    """
    known = LETTERS[: len(options)]
    plain = " ".join(_MARKUP.sub("", text).split())
    whole = _option_text(plain, options, known)
    if whole:
        return whole
    cued = [_at_start(plain[found.end() :], options, known) for found in _CUE.finditer(plain)]
    if any(cued):
        return cued[0] if len(set(cued)) == 1 else None
    return _at_start(plain, options, known)


def parse_published(text: str, options: Sequence[str], rule: PublishedRule, *, key: str) -> str:
    """The letter that a published scorer reads, "" for none.

    "before_bracket" (HoPE's fork of lmms-eval, MLVU): all before the first ")" - "(B)" is then "(B", and wrong.
    "first_letter" (lmms-eval, Video-MME; VideoRoPE): the first capital letter of an option, so "Apples" is A.
    "first_letter_or_random" (LongVideoBench): and where there is none a random option, unseeded in the published code;
    here it is drawn from `key`, the same at every run.
    """
    if rule == "before_bracket":
        return text.strip().split(")")[0].strip()
    stripped = text.strip()
    for prefix in _PREFIXES:
        stripped = stripped.replace(prefix, "")
    found = re.search(f"[{LETTERS[: max(len(options), 1)]}]", stripped)
    if found:
        return found[0]
    if rule == "first_letter_or_random" and options:
        return LETTERS[zlib.crc32(key.encode()) % len(options)]
    return ""


def _at_start(text: str, options: Sequence[str], known: str) -> str | None:
    """What a text begins with: a letter that no second one is joined to, or the text of an option up to a mark."""
    found = re.match(r"\W*(?:(?:option|choice|answer)\s+)?([A-J])(?![\w'])", text, re.IGNORECASE)
    if found and found[1].upper() in known and _is_letter(text, found):
        letter = found[1].upper()
        second = _JOINED.match(text, found.end())
        if second and second[1].upper() != letter and _is_letter(text, second):
            return None
        return letter
    sentence = re.split(r"\.(?!\d)|[;\n]", text, maxsplit=1)[0]
    return _option_text(text, options, known) or _option_text(sentence, options, known)


def _is_letter(text: str, found: "re.Match[str]") -> bool:
    """Whether a single character names an option and is no word: "a dog", "I think" are words."""
    before, after = text[max(0, found.start(1) - 1) : found.start(1)], text[found.end(1) :]
    if before == "(" or re.match(r"\s*($|[).:,\]\-/&(])", after):
        return True
    return found[1].isupper() and not (found[1] in "AI" and re.match(r"\s+[a-z]", after))


def _option_text(text: str, options: Sequence[str], known: str) -> str | None:
    """The one option that the text is, case, marks at the ends and a leading letter aside."""
    wanted = _bare(text)
    matching = [letter for letter, option in zip(known, options, strict=False) if _bare(option) == wanted]
    if not matching:  # "B. a red car": the letter and the text must agree
        found = re.match(r"\W*([A-Ja-j])\s*[).:\-]\s*(.+)$", text)
        if found and found[1].upper() in known and _bare(options[known.index(found[1].upper())]) == _bare(found[2]):
            return found[1].upper()
    return matching[0] if len(matching) == 1 and wanted else None


def _bare(text: str) -> str:
    """The text without case and marks at its ends; a number's minus sign and leading point are part of it."""
    plain = " ".join(text.replace("$", "").replace("\N{MINUS SIGN}", "-").split())  # answers lost their $ as markup
    return re.sub(r"^(?:(?!-?\.?\d)\W)+|\W+$", "", plain).casefold()
