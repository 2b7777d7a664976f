rule cache_part:
    input:
        teacher="<run>/teacher/provenance.json",
        data="<run>/data/distill/report.json",
    # Gone when the cache is there: one that is to be made again is made by as many jobs.
    output:
        temp("<run>/cache_parts/{part}.json"),
    log:
        "<logs>/cache_part/{part}.log",
    benchmark:
        "<benchmarks>/cache_part/{part}.tsv"
    conda:
        environment("cache")
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
        gpus=PRESET.gpus.cache,
    params:
        settings=CACHE_SETTINGS,
        max_length=PRESET.data.max_length,
        teacher=subpath(input.teacher, parent=True),
        data=subpath(input.data, parent=True),
        layers=CACHE_LAYERS,
        jobs=PRESET.cache.jobs,
        code=code_hash("matvlm.distill.cache.run"),
        state=f"runs/{CONFIG.preset}/state/cache",
    shell:
        "workflow/scripts/logged {log} python -m matvlm.distill.cache.run"
        " --settings {params.settings:q} --max-length {params.max_length} {params.layers}"
        " --teacher {params.teacher} --data {params.data}"
        " --part {wildcards.part}/{params.jobs} --state {params.state}/{params.code} --out {output}"


# Makes what no other job has made: everything, where cache.jobs is 1.
rule cache_teacher:
    input:
        teacher="<run>/teacher/provenance.json",
        data="<run>/data/distill/report.json",
        parts=expand("<run>/cache_parts/{part}.json", part=CACHE_PARTS),
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
        settings=CACHE_SETTINGS,
        max_length=PRESET.data.max_length,
        teacher=subpath(input.teacher, parent=True),
        data=subpath(input.data, parent=True),
        layers=CACHE_LAYERS,
        code=code_hash("matvlm.distill.cache.run"),
        state=f"runs/{CONFIG.preset}/state/cache",
        out=subpath(output[0], parent=True),
    # State of another version of the code is not gone on from; a cache that is there needs none.
    shell:
        "workflow/scripts/logged {log} python -m matvlm.distill.cache.run"
        " --settings {params.settings:q} --max-length {params.max_length} {params.layers}"
        " --teacher {params.teacher} --data {params.data} --parts {input.parts}"
        " --state {params.state}/{params.code} --out {params.out}"
        " && rm -rf {params.state}"
