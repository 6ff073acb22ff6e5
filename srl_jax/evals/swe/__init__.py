"""SWE-bench Verified with oracle files or end to end (paper, 5.3 and Table 4); see docs/swe.md.

solving    instances -> prompts (prompting) -> responses -> edits -> patches -> predictions.jsonl
judging    predictions -> tests in a sandbox, in docker, or a report -> judged.jsonl -> table

Only `judge` runs code of a model or a repository: in a sandbox or in the official harness.
"""
