# Tidy CSV files: of each table's own cells, so that a table on demand needs no others, and of the whole preset.
rule collect_table:
    input:
        lambda w: collected_files(w.kind, TABLE_CELLS[w.table]),
    output:
        "<run>/collected/{table}/{kind}.csv",
    log:
        "<logs>/collect/{table}/{kind}.log",
    benchmark:
        "<benchmarks>/collect/{table}/{kind}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=growing(1000),
        runtime=growing(5),
    params:
        code=code_hash("matvlm.report.collect"),
    shell:
        "workflow/scripts/logged {log} python -m matvlm.report.collect"
        " --kind {wildcards.kind} --inputs {input} --out {output}"


rule collect:
    input:
        lambda w: collected_files(w.kind, CELLS),
    output:
        "<results>/data/{kind}.csv",
    log:
        "<logs>/collect/{kind}.log",
    benchmark:
        "<benchmarks>/collect/{kind}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=growing(1000),
        runtime=growing(5),
    params:
        code=code_hash("matvlm.report.collect"),
    shell:
        "workflow/scripts/logged {log} python -m matvlm.report.collect"
        " --kind {wildcards.kind} --inputs {input} --out {output}"
