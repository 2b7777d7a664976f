rule profile:
    input:
        teacher="<run>/teacher/provenance.json",
    output:
        "<run>/profile/{subject}.json",
    log:
        "<logs>/profile/{subject}.log",
    benchmark:
        "<benchmarks>/profile/{subject}.tsv"
    conda:
        "../../envs/cpu.yaml"
    # All cores, though it uses one: a measurement must not share the machine.
    threads: workflow.cores or 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        # The other layouts do not concern this one.
        settings=PRESET.profile.model_copy(update={"layouts": ()}).model_dump_json(),
        teacher=subpath(input.teacher, parent=True),
        layout=lambda w: "" if w.subject == "teacher" else f"--layout {w.subject}",
        code=code_hash("matvlm.profiling.run"),
    shell:
        "workflow/scripts/logged {log} python -m matvlm.profiling.run"
        " --settings {params.settings:q} --teacher {params.teacher} {params.layout} --out {output}"
