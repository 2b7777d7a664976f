from snakemake.utils import min_version

min_version("9.27")


include: "workflow/rules/params.smk"


configfile: "params.yaml"


include: "workflow/rules/common.smk"


if PRESET.trains:

    include: "workflow/rules/data.smk"
    include: "workflow/rules/teacher.smk"
    include: "workflow/rules/cache.smk"
    include: "workflow/rules/hybrid.smk"
    include: "workflow/rules/distill.smk"
    include: "workflow/rules/evaluate.smk"


if MEASURED:

    include: "workflow/rules/profile.smk"

else:

    rule profile:
        input:
            not_here,


include: "workflow/rules/collect.smk"
include: "workflow/rules/render.smk"
include: "workflow/rules/stages.smk"
include: "workflow/rules/slurm.smk"


report: "workflow/report/workflow.rst"


rule all:
    default_target: True
    input:
        EVERYTHING,


rule table_main:
    input:
        rendered_table("main"),


rule table_losses:
    input:
        rendered_table("losses"),


rule table_layouts:
    input:
        rendered_table("layouts"),


rule table_ratios:
    input:
        rendered_table("ratios"),


rule table_inits:
    input:
        rendered_table("inits"),


rule table_divergences:
    input:
        rendered_table("divergences"),


if "grid" in TABLES:

    rule table_grid:
        input:
            rendered_table("grid"),


rule table_speed:
    input:
        rendered_table("speed"),


rule figure_speed:
    input:
        rendered_figure("speed"),


rule figure_memory:
    input:
        rendered_figure("memory"),


rule figure_convergence:
    input:
        rendered_figure("convergence"),


rule figure_ablations:
    input:
        rendered_figure("ablations"),


rule figure_radar:
    input:
        rendered_figure("radar"),


rule claims:
    input:
        "<results>/claims.md",
        collected_files("runs", CELLS),


rule page:
    input:
        "<results>/index.html",
        collected_files("runs", CELLS),
