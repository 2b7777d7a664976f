rule profile:
    input:
        teacher="<run>/teacher/provenance.json",
    output:
        [f"<run>/profile/{subject}.json" for subject in SUBJECTS],
    log:
        "<logs>/profile.log",
    benchmark:
        "<benchmarks>/profile.tsv"
    conda:
        environment("profile")
    # It uses one core, but must not share the machine: locally it takes all cores, in Slurm a node of its own.
    threads: workflow.cores if workflow.local_exec else 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
        gpus=PRESET.gpus.profile,
        slurm_extra=" ".join(filter(None, ["--exclusive", CONFIG.slurm.extra])),
    params:
        settings=PRESET.profile.model_dump_json(),
        teacher=subpath(input.teacher, parent=True),
        out=subpath(output[0], parent=True),
        code=code_hash("matvlm.profiling.run"),
    shell:
        "workflow/scripts/logged {log} python -m matvlm.profiling.run"
        " --settings {params.settings:q} --teacher {params.teacher} --out {params.out}"
