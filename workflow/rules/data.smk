rule prepare_data:
    output:
        "<run>/data/{split}/report.json",
    log:
        "<logs>/prepare_data/{split}.log",
    benchmark:
        "<benchmarks>/prepare_data/{split}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 2
    resources:
        mem_mb=growing(2000),
        runtime=growing(20),
    params:
        settings=PRESET.data.model_dump_json(exclude={"max_length"}),
        out=subpath(output[0], parent=True),
        code=code_hash("matvlm.data.prepare"),
    shell:
        "workflow/scripts/logged {log} python -m matvlm.data.prepare"
        " --settings {params.settings:q} --split {wildcards.split} --workers {threads} --out {params.out}"
