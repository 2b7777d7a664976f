rule init_hybrid:
    input:
        teacher="<run>/teacher/provenance.json",
    output:
        "<run>/init/{init}/{layout}/seed{seed}/provenance.json",
    log:
        "<logs>/init_hybrid/{init}/{layout}/seed{seed}.log",
    benchmark:
        "<benchmarks>/init_hybrid/{init}/{layout}/seed{seed}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(20),
    params:
        teacher=subpath(input.teacher, parent=True),
        out=subpath(output[0], parent=True),
        code=code_hash("matvlm.models.initialise"),
    shell:
        "workflow/scripts/logged {log} python -m matvlm.models.initialise"
        " --teacher {params.teacher} --init {wildcards.init} --layout {wildcards.layout}"
        " --seed {wildcards.seed} --out {params.out}"
