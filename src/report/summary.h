/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a report shows, read from a manifest: sizes, a row for each weight with its statistics, and
 * what gives cause for concern. The manifest is a file like any other: members that are missing or
 * of a wrong type are unknown, and unknown is shown as such.
 *
 *   summary.c    manifest -> rows, sizes
 *   warnings.c   rows -> warnings
 *   json.c       the same as JSON
 *   html.c, charts.c, text.c, page.css, page.js    the same as a page
 *   write.c      the public functions
 */
#ifndef QF_REPORT_SUMMARY_H
#define QF_REPORT_SUMMARY_H

#include <cjson/cJSON.h>
#include <stdio.h>

#include "base/arena.h"
#include "base/error.h"
#include "kernels.h"

/* Counts of one weight, over [from, to] in steps of the integers. */
typedef struct qf_histogram {
    double from, to, sampled, below, above;
    double *floats; /* QF_BINS; NULL: the source was integers */
    double *ints;   /* NULL: there is no histogram */
    int int_count;
} qf_histogram;

/* A weight, or a layer without one. Numbers that are not known are NAN. */
typedef struct qf_row {
    const char *layer, *op, *tensor; /* "" where there is none */
    bool has_weight;
    double activation_bits; /* 0: they stay as they are */
    double bits, elements, channels, scales, group, scale_min, scale_max, near_zero;
    double sqnr; /* dB; infinite if nothing was lost */
    double mean_square_error, max_error, clipped, saturated, dead;
    double scale_d, offset_d;
    double bias_largest, bias_share; /* of 2^31 */
    qf_histogram histogram;
    unsigned warnings; /* bits 1 << qf_warning_kind */
} qf_row;

/* Why a row is worth a look, worst first. docs/report.md has the thresholds and their reasons. */
typedef enum qf_warning_kind {
    QF_WARN_BIAS,
    QF_WARN_CLIPPED,
    QF_WARN_SQNR,
    QF_WARN_SATURATED,
    QF_WARN_DEAD,
    QF_WARN_NEAR_ZERO,
    QF_WARN_KINDS
} qf_warning_kind;

typedef struct qf_warning {
    qf_warning_kind kind;
    size_t row;
    const char *message; /* a sentence about the layer */
} qf_warning;

/* Which of an export's models a file belongs to. */
typedef enum qf_report_model {
    QF_REPORT_DEPLOY,
    QF_REPORT_FAKE_QUANT,
    QF_REPORT_RUNNABLE,
    QF_REPORT_MODELS
} qf_report_model;

typedef struct qf_report_file {
    const char *name;
    double bytes;
    qf_report_model model;
} qf_report_file;

typedef struct qf_skipped_row {
    const char *layer, *op, *reason;
} qf_skipped_row;

typedef struct qf_summary {
    qf_arena arena;
    cJSON *manifest; /* borrowed from, for the texts */
    const char *title, *version, *scheme;
    bool measured; /* the manifest has statistics */
    qf_report_file *inputs, *outputs;
    size_t input_count, output_count;
    double before, after[QF_REPORT_MODELS]; /* bytes */
    qf_row *rows;
    size_t row_count, row_cap;
    double layer_count; /* NAN: the manifest does not say */
    qf_skipped_row *skipped;
    size_t skipped_count;
    qf_warning *warnings;
    size_t warning_count, warning_cap;
} qf_summary;

/* Reads the manifest of what was exported to `path`: a save path, the folder of a checkpoint, or
 * the manifest itself. *place is its path, to free(). */
qf_status qf_summary_open(const char *path, qf_summary **out, char **place, qf_error *err);
void qf_summary_close(qf_summary *summary);

/* The steps of that. False when memory is exhausted. */
bool qf_summary_read(qf_summary *summary);
bool qf_summary_warn(qf_summary *summary);

/* A title and what to do about warnings of a kind; a short word for JSON. */
const char *qf_warning_title(qf_warning_kind kind);
const char *qf_warning_advice(qf_warning_kind kind);
const char *qf_warning_word(qf_warning_kind kind);

/* "deploy", ...; for JSON and for the table of files. */
const char *qf_report_model_word(qf_report_model model);

/* NULL when memory is exhausted. */
cJSON *qf_summary_to_json(const qf_summary *summary);

/* Writes the page; errors stick to `out`. False when memory is exhausted. */
bool qf_summary_to_html(const qf_summary *summary, FILE *out);

/* ---- html.c, charts.c, text.c ---- */

/* Text from a file, as HTML: markup escaped, what is no character of UTF-8 replaced. */
void qf_html_text(FILE *out, const char *text);
size_t qf_html_characters(const char *text);
/* The same, at most `most` characters of it, the middle left out. */
void qf_html_short(FILE *out, const char *text, size_t most);
/* A bar for each row that has an SQNR: named ones where there are few, else columns. */
void qf_chart_sqnr(const qf_summary *summary, FILE *out);
void qf_chart_histogram(const qf_row *row, FILE *out);

/* page.css and page.js, and their SHA-256 for the page's Content-Security-Policy (embed.py). */
extern const char qf_page_css[], qf_page_css_hash[], qf_page_js[], qf_page_js_hash[];

#endif
