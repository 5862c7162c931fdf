"""Measurements, all by one pattern: a request is checked, planned on a task, and run into a result.

    plan = SpectrumRequest(top=10).plan(task)      # what it will do, and what that costs
    spectrum = plan.run(task)

`requests/` says what can be asked, without torch, so that a command's help needs none; a file here per kind says how it
is planned and run. `lite_probe.results.kinds` lists the kinds.
"""
