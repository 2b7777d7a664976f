rule profile:
    input:
        teacher="<run>/teacher/provenance.json" if PRESET.trains else [],
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
    # Random weights are for large models, which take memory to be built and time to be measured.
    resources:
        mem_mb=growing(4000 if PRESET.trains else 32000),
        runtime=growing(60 if PRESET.trains else 180),
        gpus=PRESET.gpus.profile,
        slurm_extra=" ".join(filter(None, ["--exclusive", CONFIG.slurm.extra])),
    params:
        settings=PRESET.profile.model_dump_json(),
        model=lambda w, input: (
            f"--teacher {folder(input.teacher)}"
            if PRESET.trains
            else f"--architecture {shlex.quote(PRESET.teacher.model_dump_json())}"
            + " --device cuda"
            * PRESET.gpus.profile  # on a CPU a large model would take days
        ),
        out=subpath(output[0], parent=True),
        state=f"runs/{CONFIG.preset}/state/profile",
        code=code_hash("matvlm.profiling.run"),
    shell:
        "workflow/scripts/logged {log} python -m matvlm.profiling.run"
        " --settings {params.settings:q} {params.model} --state {params.state}/{params.code}.jsonl --out {params.out}"
