/* SPDX-License-Identifier: Apache-2.0 */
/* Inline SVG. Bars are placed in percent, so that charts take the width there is while their texts
 * keep their size; all colours are classes of page.css. */
#include <math.h>

#include "report/summary.h"

enum {
    NAMED_MOST = 24,    /* bars that have their name beside them */
    COLUMNS_MOST = 400, /* beyond, a column stands for the worst of several rows */
    NAME_HEIGHT = 18,
    BAR_HEIGHT = 10,
    ENTRY_HEIGHT = 40,
    PLOT_HEIGHT = 180,
    TOP = 12,
    STEP = 10 /* dB between lines */
};

static bool has_sqnr(const qf_row *r)
{
    return !isnan(r->sqnr);
}

/* The end of the scale, a multiple of STEP. */
static double scale_end(const qf_summary *s)
{
    double most = 4 * STEP;
    for (size_t i = 0; i < s->row_count; i++) {
        if (isfinite(s->rows[i].sqnr) && s->rows[i].sqnr > most)
            most = s->rows[i].sqnr;
    }
    return ceil(most / STEP) * STEP;
}

static double percent(double sqnr, double end)
{
    double share = isinf(sqnr) ? 100 : 100 * sqnr / end;
    return share < 0.5 ? 0.5 : share > 100 ? 100 : share;
}

static const char *class_of(const qf_row *r)
{
    return r->warnings & 1u << QF_WARN_SQNR ? "bar low" : "bar";
}

static void put_value(FILE *out, double sqnr)
{
    if (isinf(sqnr))
        fputs("exact", out);
    else
        fprintf(out, "%.1f dB", sqnr);
}

static void put_row_name(FILE *out, const qf_row *r, size_t most)
{
    qf_html_short(out, r->layer, most);
    if (*r->tensor) {
        fputs(*r->layer ? " \xc2\xb7 " : "", out);
        qf_html_short(out, r->tensor, most);
    }
}

static void put_title(FILE *out, const qf_row *r)
{
    fputs("<title>", out);
    put_row_name(out, r, 200);
    fputs(": ", out);
    put_value(out, r->sqnr);
    fputs("</title>", out);
}

static void begin_chart(FILE *out, double height, const char *what)
{
    fprintf(out,
            "<svg class=\"chart\" width=\"100%%\" height=\"%.0f\" role=\"img\" "
            "aria-labelledby=\"sqnr-t sqnr-d\"><title id=\"sqnr-t\">Signal to quantization noise "
            "by layer</title><desc id=\"sqnr-d\">%s; the table below has the same numbers.</desc>",
            height, what);
}

static void named_bars(const qf_summary *s, size_t count, double end, FILE *out)
{
    size_t at = 0;
    begin_chart(out, (double)(count * ENTRY_HEIGHT), "A horizontal bar for each weight");
    for (size_t i = 0; i < s->row_count; i++) {
        const qf_row *r = &s->rows[i];
        if (!has_sqnr(r))
            continue;
        double y = (double)(at++ * ENTRY_HEIGHT);
        fputs("<g>", out);
        put_title(out, r);
        fprintf(out, "<text class=\"name\" x=\"0\" y=\"%.0f\">", y + NAME_HEIGHT - 5);
        qf_html_short(out, *r->layer ? r->layer : r->tensor, 36);
        fprintf(out, "</text><text class=\"value\" x=\"100%%\" y=\"%.0f\" text-anchor=\"end\">",
                y + NAME_HEIGHT - 5);
        put_value(out, r->sqnr);
        fprintf(out,
                "</text><rect class=\"track\" x=\"0\" y=\"%.0f\" width=\"100%%\" height=\"%d\" "
                "rx=\"3\"/><rect class=\"%s\" x=\"0\" y=\"%.0f\" width=\"%.2f%%\" height=\"%d\" "
                "rx=\"3\"/></g>\n",
                y + NAME_HEIGHT, BAR_HEIGHT, class_of(r), y + NAME_HEIGHT, percent(r->sqnr, end),
                BAR_HEIGHT);
    }
    fputs("</svg>\n", out);
}

static double line_step(double end)
{
    return end > 8 * STEP ? 2 * STEP : STEP;
}

/* The numbers of the lines, in a picture of their own beside the columns. */
static void put_ticks(FILE *out, double end)
{
    double step = line_step(end);
    fprintf(out, "<svg class=\"ticks\" width=\"42\" height=\"%d\" aria-hidden=\"true\">",
            TOP + PLOT_HEIGHT + 2);
    for (int i = 0; i * step <= end; i++) {
        double db = i * step;
        fprintf(out, "<text class=\"tick\" x=\"34\" y=\"%.1f\" text-anchor=\"end\">%.0f%s</text>",
                TOP + PLOT_HEIGHT * (1 - db / end) + (db > 0 ? 4 : 0), db,
                db + step > end ? " dB" : "");
    }
    fputs("</svg>\n", out);
}

static void put_lines(FILE *out, double end)
{
    double step = line_step(end);
    for (int i = 0; i * step <= end; i++) {
        double db = i * step;
        double y = TOP + PLOT_HEIGHT * (1 - db / end);
        fprintf(out, "<line class=\"grid\" x1=\"0\" x2=\"100%%\" y1=\"%.1f\" y2=\"%.1f\"/>", y, y);
    }
}

/* The next `take` rows that have an SQNR, from *at on: the one with the least. */
static const qf_row *worst_of(const qf_summary *s, size_t *at, size_t take)
{
    const qf_row *worst = NULL;
    for (; *at < s->row_count && take; (*at)++) {
        const qf_row *r = &s->rows[*at];
        if (!has_sqnr(r))
            continue;
        take--;
        worst = !worst || r->sqnr < worst->sqnr ? r : worst;
    }
    return worst;
}

static void columns(const qf_summary *s, size_t count, double end, FILE *out)
{
    size_t take = (count + COLUMNS_MOST - 1) / COLUMNS_MOST, n = (count + take - 1) / take, at = 0;
    double width = 100 / (double)n;
    fputs("<div class=\"plot\">\n", out);
    put_ticks(out, end);
    begin_chart(out, TOP + PLOT_HEIGHT + 2,
                take > 1 ? "A column for the worst of several weights, in the order of the model"
                         : "A column for each weight, in the order of the model");
    put_lines(out, end);
    for (size_t i = 0; i < n; i++) {
        const qf_row *r = worst_of(s, &at, take);
        if (!r)
            break;
        double height = PLOT_HEIGHT * percent(r->sqnr, end) / 100;
        fprintf(out, "<rect class=\"%s\" x=\"%.3f%%\" y=\"%.1f\" width=\"%.3f%%\" height=\"%.1f\">",
                class_of(r), (double)i * width, TOP + PLOT_HEIGHT - height,
                width * (n > 150 ? 1.15 : 0.75), height);
        put_title(out, r);
        fputs("</rect>\n", out);
    }
    fputs("</svg>\n</div>\n", out);
    if (take > 1)
        fprintf(out, "<p class=\"note\">Each column is the worst of %zu weights.</p>\n", take);
}

void qf_chart_sqnr(const qf_summary *s, FILE *out)
{
    size_t count = 0;
    for (size_t i = 0; i < s->row_count; i++)
        count += has_sqnr(&s->rows[i]);
    if (!count)
        fputs("<p class=\"note\">No weight was rounded.</p>\n", out);
    else if (count <= NAMED_MOST)
        named_bars(s, count, scale_end(s), out);
    else
        columns(s, count, scale_end(s), out);
}

/* ---- histograms ---- */

enum { VIEW_HEIGHT = 100, MARGIN = 2 /* bins on each side, for what lies outside */ };

/* The outline of n bins over QF_BINS units, as tall as their counts a unit. */
static void put_steps(FILE *out, const double *counts, int n, double most, bool closed)
{
    double width = (double)QF_BINS / n;
    fprintf(out, "M0 %d", VIEW_HEIGHT);
    for (int i = 0; i < n; i++)
        fprintf(out, "V%.4gH%.4g", VIEW_HEIGHT - VIEW_HEIGHT * counts[i] / width / most,
                (i + 1) * width);
    fprintf(out, "V%d%s", VIEW_HEIGHT, closed ? "Z" : "");
}

static double tallest(const qf_histogram *h)
{
    double most = 0, width = (double)QF_BINS / h->int_count;
    for (int i = 0; i < h->int_count; i++)
        most = h->ints[i] / width > most ? h->ints[i] / width : most;
    for (int i = 0; h->floats && i < QF_BINS; i++)
        most = h->floats[i] > most ? h->floats[i] : most;
    return most;
}

/* What was clipped, as bars beyond the ends. */
static void put_outside(FILE *out, double count, double x, double most)
{
    double height = VIEW_HEIGHT * (count < most ? count / most : 1);
    if (count > 0)
        fprintf(out, "<rect class=\"out\" x=\"%.0f\" y=\"%.4g\" width=\"1.5\" height=\"%.4g\"/>", x,
                VIEW_HEIGHT - height, height);
}

void qf_chart_histogram(const qf_row *r, FILE *out)
{
    const qf_histogram *h = &r->histogram;
    double most = tallest(h);
    /* the largest weight of a scale lies on the range's end, which is not beyond it */
    bool clips = h->floats && r->clipped > 0;
    if (!(most > 0))
        return;
    fprintf(out,
            "<figure><svg class=\"hist\" viewBox=\"%d 0 %d %d\" preserveAspectRatio=\"none\" "
            "role=\"img\"><title>Weights of ",
            -MARGIN, QF_BINS + 2 * MARGIN, VIEW_HEIGHT);
    put_row_name(out, r, 100);
    fputs("</title><desc>How many weights fall on each part of the range: filled, the integers; "
          "as a line, the floats divided by their scale.</desc><path class=\"ints\" d=\"",
          out);
    put_steps(out, h->ints, h->int_count, most, true);
    fputs("\"/>", out);
    if (h->floats) {
        fputs("<path class=\"floats\" d=\"", out);
        put_steps(out, h->floats, QF_BINS, most, false);
        fputs("\"/>", out);
    }
    if (clips) {
        put_outside(out, h->below, -MARGIN, most);
        put_outside(out, h->above, QF_BINS + MARGIN - 1.5, most);
    }
    fprintf(out,
            "</svg><div class=\"axis\"><span>%.0f</span><span>0</span><span>%.0f</span></div>"
            "<figcaption><span class=\"key k-ints\">integers</span>",
            h->from + 0.5, h->to - 0.5);
    if (h->floats)
        fputs(" <span class=\"key k-floats\">floats / scale</span>", out);
    if (clips && r->elements > 0)
        fprintf(out, " <span class=\"key k-out\">%.3g %% clipped</span>",
                100 * r->clipped / r->elements);
    if (!isnan(h->sampled))
        fprintf(out, " <span class=\"note\">%.0f %s</span>", h->sampled,
                h->sampled < r->elements ? "weights sampled" : "weights");
    fputs("</figcaption></figure>\n", out);
}
