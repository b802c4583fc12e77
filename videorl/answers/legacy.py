"""How some papers' code reads answers, for recipes that must reproduce it. Use the other parsers for anything else.

Each reads the first answer block, the one quoted in the reasoning if there is one, and has the defects it names.
"""

from __future__ import annotations

import re

from videorl.answers.answer import ANSWER, END_ANSWER, MAX_ANSWER_CHARS, Failure, failure

_OPTION = re.compile("[ABCD]")


def first_answer(response: str) -> str | Failure:
    """The body of the first `<answer>.*?</answer>` (DOTALL), wherever it stands."""
    _, _, rest = response.partition(ANSWER)
    body, closed, _ = rest.partition(END_ANSWER)
    return body if closed else Failure("no_answer")


def read_v1_letter(response: str) -> str | Failure:
    """V1 (2505.22457): the first A, B, C or D of the first answer.

    Defects: "Because" is B, "A man" is A, "not B" is B, "B or A" is B; options past D and lower case are never read.
    Its rule that an answer of more than ten words needs one of the letters adds nothing: every answer does.
    """
    answer = first_answer(response)
    if isinstance(answer, Failure):
        return answer
    letter = _OPTION.search(answer)
    return letter[0] if letter else failure("no_letter", answer)


def read_video_r1_answer(response: str) -> str | Failure:
    """Video-R1 (2503.21776): the first answer, stripped, whatever it is. Its types of answer are compared in
    `videorl.rewards.terms.video_r1`. Longer answers than `MAX_ANSWER_CHARS` are ours to refuse, not the paper's."""
    answer = first_answer(response)
    if isinstance(answer, Failure):
        return answer
    return answer.strip() if len(answer) <= MAX_ANSWER_CHARS else Failure("too_long", f"{len(answer)} characters")


def read_longvila_answer(response: str) -> str:
    """LongVILA-R1 (2507.07966): the first answer without spaces and newlines, or the whole response without them.

    Defects: a bare "B" with no reasoning and no tags counts; "1 2" is 12. Its grader then also accepts what is
    mathematically equal; we compare strings, which is the same for letters.
    """
    text = response.replace(" ", "").replace("\n", "")
    answer = first_answer(text)
    return text if isinstance(answer, Failure) else answer
