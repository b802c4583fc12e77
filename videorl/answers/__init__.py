"""From the text of a response to an answer: a typed value, or a `Failure` that says why there is none.

Rewards, evaluation and data checks all read answers here. No parser raises, whatever the string, and each takes
time linear in it. None guesses: an answer that can be read two ways is a failure, so hedging never pays.

    answer       where the answer is: `find_answer`, `parse_blocks`; `Failure` and its reasons
    cleaning     what all readers do to a text first
    letters      the letter of one option
    numbers      one finite number, or a list of them
    scores       several named integers
    permutations some symbols in an order
    verdicts     one of a few fixed statements; yes or no
    text         a whole free text
    legacy       how some papers read answers, defects included
    times        (start, end) in seconds
    blocks       one named block
    objects      JSON
    boxes        boxes, and boxes of frames
    gold         the right answers of rows, read by the same parsers
"""
