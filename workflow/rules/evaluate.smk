rule evaluate_teacher:
    input:
        model="<run>/teacher/provenance.json",
        data="<run>/data/test/report.json",
    output:
        "<run>/eval/teacher/results.json",
    log:
        "<logs>/evaluate/teacher.log",
    benchmark:
        "<benchmarks>/evaluate/teacher.tsv"
    conda:
        environment("evaluate")
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
        gpus=PRESET.gpus.evaluate,
    params:
        settings=PRESET.evaluate.model_dump_json(),
        model=subpath(input.model, parent=True),
        data=subpath(input.data, parent=True),
        out=subpath(output[0], parent=True),
        code=code_hash("matvlm.evaluation.run"),
    shell:
        "workflow/scripts/logged {log} python -m matvlm.evaluation.run"
        " --settings {params.settings:q} --data {params.data}"
        " --models {params.model} --outs {params.out}"


# Importing lmms-eval takes longer than evaluating a small model, so one process takes several: the cells that
# the same tables need, as a table wants either all of such a batch or none of it.
for batch, cells in evaluation_batches(PRESET, CONFIG.base).items():

    rule:
        name:
            f"evaluate_{batch}"
        input:
            models=[
                f"<run>/distill/{cell.path}/seed{{seed}}/provenance.json"
                for cell in cells
            ],
            data="<run>/data/test/report.json",
        output:
            [
                f"<run>/eval/student/{cell.path}/seed{{seed}}/results.json"
                for cell in cells
            ],
        log:
            f"<logs>/evaluate/{batch}-seed{{seed}}.log",
        benchmark:
            f"<benchmarks>/evaluate/{batch}-seed{{seed}}.tsv"
        conda:
            environment("evaluate")
        threads: 1
        resources:
            mem_mb=growing(4000),
            runtime=growing(120),
            gpus=PRESET.gpus.evaluate,
        params:
            settings=PRESET.evaluate.model_dump_json(),
            models=lambda w, input: folder(input.models),
            data=subpath(input.data, parent=True),
            outs=lambda w, output: folder(output),
            code=code_hash("matvlm.evaluation.run"),
        shell:
            "workflow/scripts/logged {log} python -m matvlm.evaluation.run"
            " --settings {params.settings:q} --data {params.data}"
            " --models {params.models} --outs {params.outs}"
