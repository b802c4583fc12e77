"""From the records of other tools and data sets to canonical rows.

layouts      the table of layouts, detection, `convert_record`: start here
record       a raw record, its typed columns, and what is left of it for `meta`
chat         layouts whose records are conversations: verl, ms-swift, TRL, LLaVA
questions    layouts whose records are questions: EasyR1, Video-R1, V1-33K, grounding
golds        right answers and options, wherever a layout hides them
"""
