/* SPDX-License-Identifier: Apache-2.0 */
/* The page: what is worrying first, then every number, then pictures. It asks for nothing: style
 * and script are inline, and its Content-Security-Policy allows those two alone, by their hash. */
#include <math.h>
#include <stdlib.h>

#include "report/summary.h"

enum {
    ROWS_MOST = 5000,     /* of the table */
    HISTOGRAMS_MOST = 48, /* those of the worst rows */
    LISTED_MOST = 5,      /* layers of a kind of warning that are seen at once */
    UNFOLDED_MOST = 200,  /* and when the rest is unfolded */
    FILES_MOST = 300,
    OPEN_MOST = 6, /* histograms that are unfolded from the start */
    NAME_MOST = 60
};

/* ---- head ---- */

static void put_bytes(FILE *out, double bytes)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    size_t unit = 0;
    if (isnan(bytes)) {
        fputs("?", out);
        return;
    }
    while (bytes >= 999.5 && unit + 1 < sizeof units / sizeof *units) {
        bytes /= 1000;
        unit++;
    }
    fprintf(out, unit && bytes < 99.95 ? "%.1f\xc2\xa0%s" : "%.0f\xc2\xa0%s", bytes, units[unit]);
}

static void put_head(const qf_summary *s, FILE *out)
{
    fprintf(out,
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
            "style-src '%s'; script-src '%s'; img-src data:; base-uri 'none'; form-action "
            "'none'\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
            "<meta name=\"color-scheme\" content=\"light dark\">\n"
            "<link rel=\"icon\" href=\"data:,\">\n<title>",
            qf_page_css_hash, qf_page_js_hash);
    qf_html_text(out, s->title);
    fprintf(out, " \xe2\x80\x93 quantization report</title>\n<style>%s</style>\n</head>\n<body>\n",
            qf_page_css);
}

static void put_size_fact(FILE *out, const char *label, double after, double before)
{
    if (!(after > 0))
        return;
    fprintf(out, "<div><dt>%s</dt><dd>", label);
    put_bytes(out, after);
    double ratio = before / after;
    if (ratio > 0.95 && ratio < 1.05)
        fputs(" <small>as before</small>", out);
    else if (before > 0)
        fprintf(out, " <small>%.1f\xc3\x97 %s</small>", ratio > 1 ? ratio : 1 / ratio,
                ratio > 1 ? "smaller" : "larger");
    fputs("</dd></div>\n", out);
}

static const qf_row *worst_row(const qf_summary *s)
{
    const qf_row *worst = NULL;
    for (size_t i = 0; i < s->row_count; i++) {
        const qf_row *r = &s->rows[i];
        if (isfinite(r->sqnr) && (!worst || r->sqnr < worst->sqnr))
            worst = r;
    }
    return worst;
}

static void put_facts(const qf_summary *s, FILE *out)
{
    const qf_row *worst = worst_row(s);
    fputs("<dl class=\"facts\">\n<div><dt>Before</dt><dd>", out);
    put_bytes(out, s->before);
    fputs("</dd></div>\n", out);
    const double *after = s->after;
    put_size_fact(out, after[QF_REPORT_FAKE_QUANT] > 0 ? "Deploy model" : "After",
                  after[QF_REPORT_DEPLOY], s->before);
    put_size_fact(out, "fake_quant model", after[QF_REPORT_FAKE_QUANT], s->before);
    put_size_fact(out, "Runnable model", after[QF_REPORT_RUNNABLE], s->before);
    if (!isnan(s->layer_count))
        fprintf(out, "<div><dt>Layers quantized</dt><dd>%.0f <small>of %.0f</small></dd></div>\n",
                s->layer_count, s->layer_count + (double)s->skipped_count);
    else
        fprintf(out, "<div><dt>Weights quantized</dt><dd>%zu</dd></div>\n", s->row_count);
    if (worst) {
        fprintf(out,
                "<div><dt>Lowest SQNR</dt><dd>%.1f\xc2\xa0"
                "dB <small>",
                worst->sqnr);
        qf_html_short(out, *worst->layer ? worst->layer : worst->tensor, 28);
        fputs("</small></dd></div>\n", out);
    }
    fputs("</dl>\n", out);
}

static void put_header(const qf_summary *s, FILE *out)
{
    fputs("<header>\n<p class=\"kicker\">Quantization report</p>\n<h1>", out);
    qf_html_text(out, s->title);
    fputs("</h1>\n<p class=\"note\">quantfold ", out);
    qf_html_text(out, s->version);
    if (*s->scheme) {
        fputs(" \xc2\xb7 scheme ", out);
        qf_html_text(out, s->scheme);
    }
    fputs("</p>\n", out);
    put_facts(s, out);
    if (!s->measured)
        fputs("<p class=\"hint\">This manifest has no statistics of weights. <code>quantfold "
              "export --stats</code> writes them, and this report then shows scales, saturation, "
              "dead channels, activations, biases and histograms too.</p>\n",
              out);
    fputs("</header>\n<main>\n", out);
}

/* ---- warnings ---- */

static void put_warning(const qf_summary *s, const qf_warning *w, FILE *out)
{
    const qf_row *r = &s->rows[w->row];
    fputs("<li><b>", out);
    qf_html_short(out, *r->layer ? r->layer : r->tensor, NAME_MOST);
    fputs("</b>", out);
    if (*r->layer && *r->tensor) {
        fputs(" <span class=\"dim\">", out);
        qf_html_short(out, r->tensor, NAME_MOST);
        fputs("</span>", out);
    }
    fprintf(out, "<br>%s</li>\n", w->message);
}

/* The warnings [from, to), all of one kind. */
static void put_kind(const qf_summary *s, size_t from, size_t to, FILE *out)
{
    qf_warning_kind kind = s->warnings[from].kind;
    size_t shown = to - from > LISTED_MOST + 1 ? from + LISTED_MOST : to;
    fprintf(out, "<article>\n<h3>%s <span class=\"count\">%zu</span></h3>\n<p>%s</p>\n<ul>\n",
            qf_warning_title(kind), to - from, qf_warning_advice(kind));
    for (size_t i = from; i < shown; i++)
        put_warning(s, &s->warnings[i], out);
    fputs("</ul>\n", out);
    if (shown < to) {
        size_t end = to - shown > UNFOLDED_MOST ? shown + UNFOLDED_MOST : to;
        fprintf(out, "<details><summary>%zu more</summary><ul>\n", to - shown);
        for (size_t i = shown; i < end; i++)
            put_warning(s, &s->warnings[i], out);
        if (end < to)
            fprintf(out, "<li>and %zu more; <code>quantfold report --json</code> has all</li>\n",
                    to - end);
        fputs("</ul></details>\n", out);
    }
    fputs("</article>\n", out);
}

static void put_warnings(const qf_summary *s, FILE *out)
{
    fputs("<section aria-labelledby=\"h-warnings\">\n<h2 id=\"h-warnings\">Warnings</h2>\n", out);
    if (!s->warning_count)
        fprintf(out, "<p class=\"good\">%s</p>\n",
                s->measured ? "Nothing stands out."
                            : "Nothing stands out in what the manifest has.");
    else
        fputs("<div class=\"warnings\">\n", out);
    for (size_t from = 0, to; from < s->warning_count; from = to) {
        for (to = from; to < s->warning_count && s->warnings[to].kind == s->warnings[from].kind;)
            to++;
        put_kind(s, from, to, out);
    }
    fputs(s->warning_count ? "</div>\n</section>\n" : "</section>\n", out);
}

/* ---- table ---- */

typedef struct column {
    const char *title;
    bool fixed; /* `digits` behind the point; else significant ones */
    int digits;
    double (*value)(const qf_row *r);
    qf_warning_kind kind; /* that marks a cell; QF_WARN_KINDS: none */
} column;

static double get_channels(const qf_row *r)
{
    return isnan(r->channels) ? r->scales : r->channels;
}

static double get_scale_min(const qf_row *r)
{
    return r->scale_min;
}

static double get_scale_max(const qf_row *r)
{
    return r->scale_max;
}

static double get_sqnr(const qf_row *r)
{
    return r->sqnr;
}

static double get_max_error(const qf_row *r)
{
    return r->max_error;
}

static double get_clipped(const qf_row *r)
{
    return 100 * r->clipped / r->elements;
}

static double get_saturated(const qf_row *r)
{
    return 100 * r->saturated / r->elements;
}

static double get_dead(const qf_row *r)
{
    return r->dead;
}

static double get_bias(const qf_row *r)
{
    return 100 * r->bias_share;
}

static const column table_columns[] = {{"Channels", true, 0, get_channels, QF_WARN_KINDS},
                                       {"Scale min", false, 3, get_scale_min, QF_WARN_NEAR_ZERO},
                                       {"Scale max", false, 3, get_scale_max, QF_WARN_KINDS},
                                       {"SQNR dB", true, 1, get_sqnr, QF_WARN_SQNR},
                                       {"Max error", false, 3, get_max_error, QF_WARN_KINDS},
                                       {"Clipped %", true, 2, get_clipped, QF_WARN_CLIPPED},
                                       {"Saturated %", true, 2, get_saturated, QF_WARN_SATURATED},
                                       {"Dead", true, 0, get_dead, QF_WARN_DEAD},
                                       {"Bias %", true, 2, get_bias, QF_WARN_BIAS}};
enum { TABLE_COLUMNS = sizeof table_columns / sizeof *table_columns };

static void put_number_cell(const qf_row *r, const column *c, FILE *out)
{
    double value = c->value(r);
    bool marked = c->kind != QF_WARN_KINDS && r->warnings & 1u << c->kind;
    if (isnan(value)) {
        fputs("<td class=\"n none\">\xe2\x80\x93</td>", out);
        return;
    }
    fprintf(out, "<td class=\"n%s\" data-v=\"%.9g\">", marked ? " mark" : "",
            isinf(value) ? 1e9 : value);
    if (isinf(value))
        fputs("exact", out);
    else if (value > 0 && value < 0.005 && c->digits == 2)
        fputs("&lt;\xe2\x80\x89"
              "0.01",
              out); /* not none */
    else
        fprintf(out, c->fixed ? "%.*f" : "%.*g", c->digits, value);
    fputs("</td>", out);
}

/* "A8 W8", "W4 in groups of 128". */
static void put_scheme(const qf_row *r, FILE *out)
{
    double order =
        (r->activation_bits > 0 ? r->activation_bits : 0) * 100 + (r->bits > 0 ? r->bits : 0);
    fprintf(out, "<td data-v=\"%.0f\">", order);
    if (r->activation_bits > 0)
        fprintf(out, "A%.0f%s", r->activation_bits, r->bits > 0 ? " " : "");
    if (r->bits > 0)
        fprintf(out, "W%.0f", r->bits);
    if (r->group > 0)
        fprintf(out, " <span class=\"dim\">/%.0f</span>", r->group);
    fputs("</td>", out);
}

static void put_table_row(const qf_row *r, FILE *out)
{
    fputs("<tr><th scope=\"row\"", out);
    if (qf_html_characters(r->layer) > NAME_MOST) {
        fputs(" title=\"", out);
        qf_html_text(out, r->layer);
        fputs("\"", out);
    }
    fputs(">", out);
    qf_html_short(out, *r->layer ? r->layer : r->tensor, NAME_MOST);
    if (*r->layer && *r->tensor) {
        fputs("<span class=\"sub\">", out);
        qf_html_short(out, r->tensor, NAME_MOST);
        fputs("</span>", out);
    }
    fputs("</th><td>", out);
    qf_html_text(out, *r->op ? r->op : "\xe2\x80\x93");
    fputs("</td>", out);
    put_scheme(r, out);
    for (size_t i = 0; i < TABLE_COLUMNS; i++)
        put_number_cell(r, &table_columns[i], out);
    fputs("</tr>\n", out);
}

static void put_table(const qf_summary *s, FILE *out)
{
    fputs(
        "<section aria-labelledby=\"h-layers\">\n<h2 id=\"h-layers\">Layers</h2>\n"
        "<div class=\"scroll\" role=\"region\" aria-labelledby=\"h-layers\" tabindex=\"0\">\n"
        "<table id=\"layers\">\n<thead><tr><th scope=\"col\">Layer</th><th scope=\"col\">Type</th>"
        "<th scope=\"col\">Bits</th>",
        out);
    for (size_t i = 0; i < TABLE_COLUMNS; i++)
        fprintf(out, "<th scope=\"col\" class=\"n\">%s</th>", table_columns[i].title);
    fputs("</tr></thead>\n<tbody>\n", out);
    for (size_t i = 0; i < s->row_count && i < ROWS_MOST; i++)
        put_table_row(&s->rows[i], out);
    fputs("</tbody>\n</table>\n</div>\n", out);
    if (s->row_count > ROWS_MOST)
        fprintf(out,
                "<p class=\"note\">The first %d of %zu; <code>quantfold report --json</code> has "
                "all.</p>\n",
                ROWS_MOST, s->row_count);
    fputs("<details><summary>What the columns say</summary>\n<dl class=\"terms\">\n"
          "<dt>Bits</dt><dd>A: of activations, W: of weights; /n: n weights share a scale</dd>\n"
          "<dt>SQNR</dt><dd>signal to quantization noise, 10 log\xe2\x82\x81\xe2\x82\x80 of the "
          "weights' energy over that of what rounding changed; 6 dB are a bit</dd>\n"
          "<dt>Max error</dt><dd>the largest change of a weight, in its own unit</dd>\n"
          "<dt>Clipped</dt><dd>weights beyond the range of the integers</dd>\n"
          "<dt>Saturated</dt><dd>integers that are the least or the greatest there is; one or two "
          "a scale are normal</dd>\n"
          "<dt>Dead</dt><dd>channels whose integers are all zero</dd>\n"
          "<dt>Bias</dt><dd>the largest int32 bias against 2\xc2\xb3\xc2\xb9</dd>\n"
          "</dl></details>\n</section>\n",
          out);
}

/* ---- pictures ---- */

static int by_worst(const void *a, const void *b)
{
    const qf_row *x = *(const qf_row *const *)a, *y = *(const qf_row *const *)b;
    if ((x->warnings != 0) != (y->warnings != 0))
        return x->warnings ? -1 : 1;
    double p = isnan(x->sqnr) ? INFINITY : x->sqnr, q = isnan(y->sqnr) ? INFINITY : y->sqnr;
    if (p != q)
        return p < q ? -1 : 1;
    return x < y ? -1 : x > y; /* rows of one array */
}

static int by_place(const void *a, const void *b)
{
    const qf_row *x = *(const qf_row *const *)a, *y = *(const qf_row *const *)b;
    return x < y ? -1 : x > y;
}

static void put_histogram(const qf_row *r, bool open, FILE *out)
{
    fprintf(out, "<details class=\"layer\"%s><summary><span class=\"what\">", open ? " open" : "");
    qf_html_short(out, *r->layer ? r->layer : r->tensor, NAME_MOST);
    fputs("</span> <span class=\"dim\">", out);
    qf_html_short(out, *r->layer ? r->tensor : "", NAME_MOST);
    fputs("</span>", out);
    if (isfinite(r->sqnr))
        fprintf(out,
                "<span class=\"db%s\">%.1f\xc2\xa0"
                "dB</span>",
                r->warnings & 1u << QF_WARN_SQNR ? " mark" : "", r->sqnr);
    fputs("</summary>\n", out);
    qf_chart_histogram(r, out);
    fputs("</details>\n", out);
}

static bool put_histograms(const qf_summary *s, FILE *out)
{
    const qf_row **rows = malloc((s->row_count + 1) * sizeof(const qf_row *));
    size_t count = 0;
    if (!rows)
        return false;
    for (size_t i = 0; i < s->row_count; i++) {
        if (s->rows[i].histogram.ints)
            rows[count++] = &s->rows[i];
    }
    size_t shown = count > HISTOGRAMS_MOST ? HISTOGRAMS_MOST : count;
    if (count) {
        qsort(rows, count, sizeof *rows, shown < count ? by_worst : by_place);
        fputs("<section aria-labelledby=\"h-hist\">\n<h2 id=\"h-hist\">Weights</h2>\n", out);
        if (shown < count)
            fprintf(out,
                    "<p class=\"note\">Those with warnings, then those of the lowest SQNR: %zu of "
                    "%zu. <code>quantfold report --json</code> has all.</p>\n",
                    shown, count);
        fputs("<div class=\"hists\">\n", out);
        for (size_t i = 0; i < shown; i++)
            put_histogram(rows[i], i < OPEN_MOST, out);
        fputs("</div>\n</section>\n", out);
    }
    free(rows);
    return true;
}

/* ---- the rest ---- */

static void put_files(const qf_summary *s, FILE *out)
{
    fprintf(out,
            "<section aria-labelledby=\"h-files\">\n<h2 id=\"h-files\">Files</h2>\n"
            "<details%s><summary>%zu in, %zu out</summary>\n<table class=\"files\"><thead><tr>"
            "<th scope=\"col\">File</th><th scope=\"col\">Part of</th><th scope=\"col\" "
            "class=\"n\">Size</th></tr></thead><tbody>\n",
            s->output_count <= 8 ? " open" : "", s->input_count, s->output_count);
    size_t total = s->input_count + s->output_count;
    for (size_t i = 0; i < total && i < FILES_MOST; i++) {
        const qf_report_file *f =
            i < s->input_count ? &s->inputs[i] : &s->outputs[i - s->input_count];
        fputs("<tr><th scope=\"row\">", out);
        qf_html_text(out, f->name);
        fprintf(out, "</th><td>%s</td><td class=\"n\">",
                i < s->input_count ? "source" : qf_report_model_word(f->model));
        put_bytes(out, f->bytes);
        fputs("</td></tr>\n", out);
    }
    fputs("</tbody></table>\n", out);
    if (total > FILES_MOST)
        fprintf(out, "<p class=\"note\">and %zu more</p>\n", total - FILES_MOST);
    fputs("</details>\n</section>\n", out);
}

static void put_skipped(const qf_summary *s, FILE *out)
{
    if (!s->skipped_count)
        return;
    fprintf(out,
            "<section aria-labelledby=\"h-float\">\n<h2 id=\"h-float\">Layers left in float</h2>\n"
            "<details%s><summary>%zu layer%s</summary>\n<ul>\n",
            s->skipped_count <= 8 ? " open" : "", s->skipped_count,
            s->skipped_count == 1 ? "" : "s");
    for (size_t i = 0; i < s->skipped_count && i < FILES_MOST; i++) {
        fputs("<li><b>", out);
        qf_html_short(out, s->skipped[i].layer, NAME_MOST);
        fputs("</b> <span class=\"dim\">", out);
        qf_html_text(out, s->skipped[i].op);
        fputs("</span><br>", out);
        qf_html_text(out, s->skipped[i].reason);
        fputs("</li>\n", out);
    }
    if (s->skipped_count > FILES_MOST)
        fprintf(out, "<li>and %zu more</li>\n", s->skipped_count - FILES_MOST);
    fputs("</ul></details>\n</section>\n", out);
}

bool qf_summary_to_html(const qf_summary *s, FILE *out)
{
    put_head(s, out);
    put_header(s, out);
    put_warnings(s, out);
    fputs(
        "<section aria-labelledby=\"h-sqnr\">\n<h2 id=\"h-sqnr\">Signal to quantization noise</h2>"
        "\n",
        out);
    qf_chart_sqnr(s, out);
    fputs("</section>\n", out);
    put_table(s, out);
    bool ok = put_histograms(s, out);
    put_skipped(s, out);
    put_files(s, out);
    fprintf(out, "</main>\n<script>%s</script>\n</body>\n</html>\n", qf_page_js);
    return ok;
}
