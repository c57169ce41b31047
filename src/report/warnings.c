/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/spill.h"
#include "report/summary.h"

/* Thresholds; docs/report.md says why. */
static const double bias_share_most = 0.5;
static const double clipped_most = 0.001; /* of the elements */
/* An SQNR of 6.02 dB a bit less this: the range is some eleven standard deviations wide. */
static const double sqnr_below_ideal = 16;
/* Of the elements, beyond the one or two of a scale that are at an end because it was made so. */
static const double saturated_most = 0.02, saturated_most_4bit = 0.1;

static const struct {
    const char *word, *title, *advice;
} kinds[QF_WARN_KINDS] = {
    [QF_WARN_BIAS] =
        {"bias_near_range", "Bias near the end of int32",
         "On the NPU the bias and the products of weights and activations are added in "
         "32 bits, and little room is left for the products. The dequant scale, "
         "scale_w x scale_d, is too small for this bias: widen the range of the "
         "weights or of the activations, or keep the layer float."},
    [QF_WARN_CLIPPED] = {"clipped", "Weights clipped",
                         "They lie beyond the range of the scales and became its ends. Calculate "
                         "the weight scales anew (quantfold record), or train on until the weights "
                         "are back in the range."},
    [QF_WARN_SQNR] = {"low_sqnr", "Low signal to noise",
                      "The steps are coarse for most of the weights: a few large ones stretch the "
                      "scale, or it is too large for all. Calculate the weight scales anew "
                      "(quantfold record); use a scale a channel instead of one a tensor, smaller "
                      "groups or more bits; or keep the layer float."},
    [QF_WARN_SATURATED] =
        {"saturated", "Many weights at the ends of the range",
         "The scales are small for these weights. If they were learned, train on; "
         "else calculate them anew (quantfold record)."},
    [QF_WARN_DEAD] =
        {"dead_channels", "Channels of zeros",
         "Every weight of the channel was rounded to zero, so that it adds nothing. If "
         "it was pruned, remove it from the model; else its scale is too large: use a "
         "scale a channel."},
    [QF_WARN_NEAR_ZERO] = {"near_zero_scales", "Scales near zero",
                           "They are what channels of zeros get, or smaller, and may vanish in the "
                           "float16 arithmetic of an NPU. Look at the channel's weights in the "
                           "training run; if it is dead, remove it."},
};

const char *qf_warning_title(qf_warning_kind kind)
{
    return kinds[kind].title;
}

const char *qf_warning_advice(qf_warning_kind kind)
{
    return kinds[kind].advice;
}

const char *qf_warning_word(qf_warning_kind kind)
{
    return kinds[kind].word;
}

static bool warn(qf_summary *s, qf_warning_kind kind, size_t row, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static bool warn(qf_summary *s, qf_warning_kind kind, size_t row, const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    const char *message = qf_arena_strdup(&s->arena, text);
    if (!message || !qf_table_grow((void **)&s->warnings, &s->warning_cap, s->warning_count + 1,
                                   sizeof *s->warnings))
        return false;
    s->warnings[s->warning_count++] = (qf_warning){kind, row, message};
    s->rows[row].warnings |= 1u << kind;
    return true;
}

/* Comparisons with what is not known are false. */
static bool judge(qf_summary *s, qf_warning_kind kind, size_t i)
{
    const qf_row *r = &s->rows[i];
    double least = 6.02 * r->bits - sqnr_below_ideal;
    double most = r->bits <= 4 ? saturated_most_4bit : saturated_most;
    switch (kind) {
    case QF_WARN_BIAS:
        return !(r->bias_share > bias_share_most && r->bias_largest > 0) ||
               warn(s, kind, i, "its largest bias is %.0f, %.0f %% of what int32 holds",
                    r->bias_largest, 100 * r->bias_share);
    case QF_WARN_CLIPPED:
        return !(r->clipped > clipped_most * r->elements) ||
               warn(s, kind, i, "%.0f of %.0f weights (%.2g %%) are clipped", r->clipped,
                    r->elements, 100 * r->clipped / r->elements);
    case QF_WARN_SQNR:
        return !(r->sqnr < least) ||
               warn(s, kind, i, "its SQNR is %.1f dB, and %.0f-bit weights should have %.0f",
                    r->sqnr, r->bits, least);
    case QF_WARN_SATURATED:
        return !(r->saturated - 2 * r->scales > most * r->elements) ||
               warn(s, kind, i, "%.3g %% of its weights are the least or the greatest integer",
                    100 * r->saturated / r->elements);
    case QF_WARN_DEAD:
        return !(r->dead > 0 && r->channels > 0) ||
               warn(s, kind, i, "%.0f of %.0f channels are all zeros", r->dead, r->channels);
    case QF_WARN_NEAR_ZERO:
        if (r->scale_d > 0 && r->scale_d <= 0x1p-23)
            return warn(s, kind, i, "its activation scale is %.3g", r->scale_d);
        return !(r->near_zero > 0 && r->scales > 0) ||
               warn(s, kind, i, "%.0f of %.0f scales are %.3g or less", r->near_zero, r->scales,
                    0x1p-23);
    case QF_WARN_KINDS:
        break;
    }
    return true;
}

bool qf_summary_warn(qf_summary *s)
{
    for (int kind = 0; kind < QF_WARN_KINDS; kind++) {
        for (size_t i = 0; i < s->row_count; i++) {
            if (!judge(s, (qf_warning_kind)kind, i))
                return false;
        }
    }
    return true;
}
