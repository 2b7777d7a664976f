rule render_table:
    input:
        unpack(lambda w: table_data(w.table)),
    output:
        report(
            multiext("<results>/tables/{table}", ".md", ".tex", ".html"),
            caption="../report/table.rst",
            category="Tables",
        ),
    log:
        "<logs>/render/table_{table}.log",
    benchmark:
        "<benchmarks>/render/table_{table}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=growing(1000),
        runtime=growing(5),
    params:
        settings=REPORT.model_dump_json(),
        data=lambda w, input: " ".join(
            f"--{name} {path}" for name, path in input.items()
        ),
        out=subpath(output[0], strip_suffix=".md"),
        code=code_hash("matvlm.report.render"),
    shell:
        "workflow/scripts/logged {log} python -m matvlm.report.render table"
        " --settings {params.settings:q} --table {wildcards.table} {params.data} --out {params.out}"


rule render_figure:
    input:
        lambda w: FIGURES[w.figure],
    output:
        report(
            multiext("<results>/figures/{figure}", ".svg", ".png"),
            caption="../report/figure.rst",
            category="Figures",
        ),
    log:
        "<logs>/render/figure_{figure}.log",
    benchmark:
        "<benchmarks>/render/figure_{figure}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(5),
    params:
        settings=REPORT.model_dump_json(),
        out=subpath(output[0], strip_suffix=".svg"),
        code=code_hash("matvlm.report.render"),
    shell:
        "workflow/scripts/logged {log} python -m matvlm.report.render figure"
        " --settings {params.settings:q} --figure {wildcards.figure} --data {input} --out {params.out}"


rule render_claims:
    input:
        **{kind: f"<results>/data/{kind}.csv" for kind in KINDS if kind != "runs"},
    output:
        report(
            multiext("<results>/claims", ".md", ".csv"),
            caption="../report/claims.rst",
            category="Claims",
        ),
    log:
        "<logs>/render/claims.log",
    benchmark:
        "<benchmarks>/render/claims.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=growing(1000),
        runtime=growing(5),
    params:
        settings=REPORT.model_dump_json(),
        data=lambda w, input: " ".join(
            f"--{name} {path}" for name, path in input.items()
        ),
        out=subpath(output[0], strip_suffix=".md"),
        code=code_hash("matvlm.report.render"),
    shell:
        "workflow/scripts/logged {log} python -m matvlm.report.render claims"
        " --settings {params.settings:q} {params.data} --out {params.out}"


rule render_page:
    input:
        claims="<results>/claims.csv",
        tables=expand("<results>/tables/{table}.html", table=TABLES),
        figures=expand("<results>/figures/{figure}.svg", figure=FIGURES),
        data=expand("<results>/data/{kind}.csv", kind=KINDS),
        # Ancient, as a page tells of its own preset: it is made anew when one more can stand beside it, but not
        # whenever one of them changes. `snakemake compare` is what is up to date with all.
        beside=[
            ancient(path)
            for path in COMPARED
            if path != f"results/{CONFIG.preset}/claims.csv"
        ],
    output:
        report(
            "<results>/index.html",
            caption="../report/page.rst",
            category="Page",
        ),
    log:
        "<logs>/render/page.log",
    benchmark:
        "<benchmarks>/render/page.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=growing(1000),
        runtime=growing(5),
    params:
        settings=REPORT.model_dump_json(),
        code=code_hash("matvlm.report.render"),
    shell:
        "workflow/scripts/logged {log} python -m matvlm.report.render page"
        " --settings {params.settings:q} --claims {input.claims} --tables {input.tables}"
        " --figures {input.figures} --data {input.data} --beside {input.beside} --out {output}"


rule summarise_metrics:
    input:
        f"<results>/data/{'eval' if PRESET.trains else 'profile'}.csv",
    output:
        "<results>/metrics.json",
    log:
        "<logs>/render/metrics.log",
    benchmark:
        "<benchmarks>/render/metrics.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=growing(1000),
        runtime=growing(5),
    params:
        kind="eval" if PRESET.trains else "profile",
        code=code_hash("matvlm.report.metrics"),
    shell:
        "workflow/scripts/logged {log} python -m matvlm.report.metrics --{params.kind} {input} --out {output}"


# What is compared is what lies here. By absolute paths no rule makes these files, so that the active preset is not
# rendered anew first either, which may have been committed with another configuration than this workflow's. The
# README has a section of the same, which `python -m matvlm.report.compare` writes: a file that is edited in place is
# no output, as Snakemake removes outputs before a job.
rule compare:
    input:
        [os.path.abspath(path) for path in COMPARED],
    output:
        report(
            multiext("results/claims", ".md", ".csv", ".svg", ".png"),
            caption="../report/comparison.rst",
            category="Claims",
        ),
    log:
        "logs/compare.log",
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=growing(1000),
        runtime=growing(5),
    params:
        out=subpath(output[0], strip_suffix=".md"),
        code=code_hash("matvlm.report.compare"),
    shell:
        "workflow/scripts/logged {log} python -m matvlm.report.compare --no-readme"
        " --claims {input} --out {params.out}"
