rule distill:
    input:
        init="<run>/init/{init}/{layout}/seed{seed}/provenance.json",
        teacher="<run>/teacher/provenance.json",
        data="<run>/data/distill/report.json",
        val="<run>/data/val/report.json",
        cache="<run>/cache/manifest.json" if CACHED else [],
    output:
        record="<run>/distill/{init}/{layout}/{loss}/{divergence}/seed{seed}/provenance.json",
        log="<run>/distill/{init}/{layout}/{loss}/{divergence}/seed{seed}/log.csv",
    log:
        "<logs>/distill/{init}/{layout}/{loss}/{divergence}/seed{seed}.log",
    benchmark:
        "<benchmarks>/distill/{init}/{layout}/{loss}/{divergence}/seed{seed}.tsv"
    conda:
        environment("distill")
    # Two students on one core each are faster than one on two, and a run gives the same bits on any machine.
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(120),
        gpus=PRESET.gpus.distill,
    params:
        settings=PRESET.distill.model_dump_json(),
        max_length=PRESET.data.max_length,
        init=subpath(input.init, parent=True),
        teacher=subpath(input.teacher, parent=True),
        data=subpath(input.data, parent=True),
        val=subpath(input.val, parent=True),
        cache=lambda w, input: f"--cache {folder(input.cache)}" if CACHED else "",
        cache_settings=CACHE_SETTINGS,
        out=subpath(output.record, parent=True),
        code=code_hash("matvlm.distill.run"),
        state=lambda w: f"runs/{CONFIG.preset}/state/{w.init}/{w.layout}/{w.loss}/{w.divergence}/seed{w.seed}",
        events=lambda w: f"runs/{CONFIG.preset}/tensorboard/{w.init}/{w.layout}/{w.loss}/{w.divergence}/seed{w.seed}",
    # State of another version of the code is not resumed; a finished run needs none.
    shell:
        "workflow/scripts/logged {log} python -m matvlm.distill.run"
        " --settings {params.settings:q} --max-length {params.max_length}"
        " --init-dir {params.init} --teacher {params.teacher}"
        " --data {params.data} --val {params.val} {params.cache} --cache-settings {params.cache_settings:q}"
        " --init {wildcards.init} --layout {wildcards.layout} --loss {wildcards.loss}"
        " --divergence {wildcards.divergence} --seed {wildcards.seed}"
        " --state {params.state}/{params.code} --tensorboard {params.events} --out {params.out}"
        " && rm -rf {params.state}"
