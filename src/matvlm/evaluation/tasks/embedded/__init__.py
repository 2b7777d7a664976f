"""The four tasks of the embedded data. They name no folder: see `matvlm.evaluation.harness.load_tasks`."""
