"""SWE-bench Verified with oracle files or end to end (paper, 5.3 and Table 4); docs/swe.md.

solving    instances -> prompts (prompting) -> responses -> edits -> patches -> predictions.jsonl
judging    predictions -> tests in a sandbox, in docker, or a report -> judged.jsonl -> table

Only `judge` runs code that it did not write: in a sandbox, or in the official harness's containers.
"""
