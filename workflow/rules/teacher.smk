# The teacher is trained, or taken over as given, or joined of parts of which one or all are.
if PRESET.teacher.source == "train":

    rule train_teacher:
        input:
            data="<run>/data/train/report.json",
            val="<run>/data/val/report.json",
        output:
            "<run>/teacher/provenance.json",
        log:
            "<logs>/train_teacher.log",
        benchmark:
            "<benchmarks>/train_teacher.tsv"
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
            data=subpath(input.data, parent=True),
            val=subpath(input.val, parent=True),
            out=subpath(output[0], parent=True),
            code=code_hash("matvlm.teacher.train"),
            state=f"runs/{CONFIG.preset}/state/teacher",
            events=f"runs/{CONFIG.preset}/tensorboard/teacher",
        # State of another version of the code is not resumed; a finished run needs none.
        shell:
            "workflow/scripts/logged {log} python -m matvlm.teacher.train"
            " --settings {params.settings:q} --max-length {params.max_length}"
            " --data {params.data} --val {params.val}"
            " --state {params.state}/{params.code} --tensorboard {params.events} --out {params.out}"
            " && rm -rf {params.state}"

elif PRESET.teacher.source == "smollm2":

    include: "joined_teacher.smk"

else:

    rule fetch_teacher:
        input:
            multiext(
                f"{PRESET.teacher.path}/",
                "config.json",
                "model.safetensors",
                "processor_config.json",
                "provenance.json",
                "tokenizer.json",
            ),
        output:
            "<run>/teacher/provenance.json",
        log:
            "<logs>/fetch_teacher.log",
        benchmark:
            "<benchmarks>/fetch_teacher.tsv"
        conda:
            "../../envs/cpu.yaml"
        threads: 1
        resources:
            mem_mb=growing(2000),
            runtime=growing(20),
        params:
            settings=PRESET.teacher.model_dump_json(),
            out=subpath(output[0], parent=True),
            code=code_hash("matvlm.teacher.fetch"),
        shell:
            "workflow/scripts/logged {log} python -m matvlm.teacher.fetch"
            " --settings {params.settings:q} --out {params.out}"
