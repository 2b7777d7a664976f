rule cache_teacher:
    input:
        teacher="<run>/teacher/provenance.json",
        data="<run>/data/distill/report.json",
    output:
        "<run>/cache/manifest.json",
    log:
        "<logs>/cache_teacher.log",
    benchmark:
        "<benchmarks>/cache_teacher.tsv"
    conda:
        environment("cache")
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
        gpus=PRESET.gpus.cache,
    params:
        settings=PRESET.cache.model_dump_json(),
        max_length=PRESET.data.max_length,
        teacher=subpath(input.teacher, parent=True),
        data=subpath(input.data, parent=True),
        out=subpath(output[0], parent=True),
        code=code_hash("matvlm.distill.cache"),
    shell:
        "workflow/scripts/logged {log} python -m matvlm.distill.cache"
        " --settings {params.settings:q} --max-length {params.max_length}"
        " --teacher {params.teacher} --data {params.data} --out {params.out}"
