# One target for each stage of dvc.yaml.
if PRESET.trains:

    rule stage_data:
        input:
            expand("<run>/data/{split}/report.json", split=SPLITS),

    rule stage_teacher:
        input:
            "<run>/teacher/provenance.json",

    rule stage_cache:
        input:
            "<run>/cache/manifest.json",

    rule stage_init:
        input:
            [
                f"<run>/init/{cell.init}/{cell.layout}/seed{seed}/provenance.json"
                for cell in CELLS
                for seed in PRESET.ablation.seeds
            ],

    rule stage_distill:
        input:
            collected_files("train", CELLS),

    rule stage_evaluate:
        input:
            collected_files("eval", CELLS),
            collected_files("profile", CELLS),

    rule stage_report:
        input:
            EVERYTHING,

else:

    for stage in ("data", "teacher", "cache", "init", "distill", "evaluate", "report"):

        rule:
            name:
                f"stage_{stage}"
            input:
                not_here,
