import pytest

from pipelines.benchmarks.scoring import parse_answer, parse_published

OPTIONS = ("a red car", "a blue boat", "a green tree", "Apples and dogs")

RECORDED = [
    ("(B)", "B"),
    ("B.", "B"),
    ("B", "B"),
    ("b", "B"),
    ("(b)", "B"),
    ("b) a blue boat", "B"),
    ("B) a blue boat", "B"),
    ("B. a blue boat", "B"),
    ("B: a blue boat.", "B"),
    ("[B]", "B"),
    ("**B**", "B"),
    ("$\\boxed{B}$", "B"),
    ("<answer>B</answer>", "B"),
    ("The answer is C", "C"),
    ("The answer is (C).", "C"),
    ("the correct answer is c.", "C"),
    ("The best option is: C", "C"),
    ("Answer: **D**", "D"),
    ("Answer:D", "D"),
    ("Option C", "C"),
    ("The correct option is option C.", "C"),
    ("C\n\nBecause the tree is green, not A or B.", "C"),
    ("C because the tree is green", "C"),
    ("The tree is green, so the answer is C.", "C"),
    ("a green tree", "C"),
    ("A green tree.", "C"),
    ("The answer is a green tree.", "C"),
    ("Apples and dogs", "D"),
    ("A", "A"),
    ("A.", "A"),
    ("A)", "A"),
    ("The answer is A", "A"),
    ("A, a red car", "A"),
    ("C. The answer is C.", "C"),
    ("", None),
    ("   \n", None),
    ("A and B", None),
    ("A or B", None),
    ("(A)(B)", None),
    ("A, B", None),
    ("B/C", None),
    ("The answer is B. No, the answer is C.", None),
    ("The answer is either", None),
    ("E", None),
    ("(F)", None),
    ("I cannot see the video.", None),
    ("I'm sorry, but I can't answer that.", None),
    ("A man is driving a car", None),
    ("a dog", None),
    ("Sorry, no option fits", None),
    ("Both", None),
    ("A blue boat and a red car", None),
    ("Because of the rain", None),
    ("7", None),
]


@pytest.mark.parametrize(("text", "letter"), RECORDED)
def test_an_answer_is_the_one_option_that_it_names_or_unparsed(text: str, letter: str | None) -> None:
    assert parse_answer(text, OPTIONS) == letter


def test_two_options_of_one_text_are_no_answer_by_text() -> None:
    assert parse_answer("yes", ("yes", "Yes", "no")) is None


@pytest.mark.parametrize(
    ("text", "options", "letter"),
    [
        ("-5", ("5", "7", "3"), None),
        ("-5", ("5", "-5", "3"), "B"),
        ("\N{MINUS SIGN}5", ("5", "-5", "3"), "B"),
        ("-5", ("5", "\N{MINUS SIGN}5", "3"), "B"),
        ("5", ("5", "-5", "3"), "A"),
        ("5", ("-5", "7", "3"), None),
        ("(-5)", ("5", "-5", "3"), "B"),
        ("-5.", ("5", "-5", "3"), "B"),
        ("**-5**", ("5", "-5", "3"), "B"),
        ("The answer is -5.", ("5", "-5", "3"), "B"),
        ("The answer is: -5. It is below 5.", ("5", "-5", "3"), "B"),
        ("B. -5", ("5", "-5", "3"), "B"),
        ("B. 5", ("5", "-5", "3"), "B"),
        ("-5 degrees", ("5 degrees", "-5 degrees"), "B"),
        ("-$5", ("$5", "$7"), None),
        ("-$5", ("$5", "-$5"), "B"),
        ("$5", ("$5", "-$5"), "A"),
        ("-.5", (".5", "-.5", "5", "-5"), "B"),
        (".5", ("5", "7"), None),
        ("1.5 m", ("1", "1.5 m", "2"), "B"),
        ("It is 1.5 m", ("1", "1.5 m", "2"), None),
        ("The answer is 1.5 or so", ("1", "1.5", "2"), None),
        ("- a red car", OPTIONS, "A"),
        ("- 7", ("5", "7"), "B"),
        ("... 7", ("5", "7"), "B"),
    ],
)
def test_a_number_is_read_with_its_sign_and_its_point(text: str, options: tuple[str, ...], letter: str | None) -> None:
    assert parse_answer(text, options) == letter


def test_the_bracket_rule_is_wrong_on_what_it_was_written_for() -> None:
    assert parse_published("B) a boat", OPTIONS, "before_bracket", key="q") == "B"
    assert parse_published("(B)", OPTIONS, "before_bracket", key="q") == "(B"
    assert parse_published("B.", OPTIONS, "before_bracket", key="q") == "B."


def test_the_first_letter_rule_takes_a_capital_out_of_any_word() -> None:
    assert parse_published("The answer is (C).", OPTIONS, "first_letter", key="q") == "C"
    assert parse_published("Because of A", OPTIONS, "first_letter", key="q") == "B"
    assert parse_published("no idea", OPTIONS, "first_letter", key="q") == ""


def test_the_random_rule_guesses_the_same_at_every_run_and_all_options_over_questions() -> None:
    guesses = [parse_published("", OPTIONS, "first_letter_or_random", key=f"q{number}") for number in range(64)]
    assert guesses == [parse_published("", OPTIONS, "first_letter_or_random", key=f"q{n}") for n in range(64)]
    assert set(guesses) == set("ABCD")
    assert parse_published("B", OPTIONS, "first_letter_or_random", key="q") == "B"
