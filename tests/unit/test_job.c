/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs block by block against a plain loop over the whole tensor: shapes that are cut flat, into
 * bands and into columns, every format, every scale layout, every source encoding. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "exec/job.h"
#include "onnx/wire.h"

/* Outputs in memory. With `shift`, room is given at addresses that no float can have, and copied to
 * its place when the next room is asked for. */
typedef struct output {
    unsigned char *data[2];
    uint64_t size[2];
    bool shift;
    unsigned char *pending[2], *target[2];
    size_t length[2];
} output;

static void settle(output *o, int t)
{
    if (o->pending[t])
        memcpy(o->target[t], o->pending[t] + 1, o->length[t]);
    free(o->pending[t]);
    o->pending[t] = NULL;
}

static qf_status give_room(void *user, int target, int file, uint64_t offset, size_t n,
                           unsigned char **at, qf_error *err)
{
    output *o = user;
    (void)err;
    assert_true(n <= QF_ROOM && offset + n <= o->size[file]);
    *at = o->data[file] + offset;
    if (!o->shift)
        return QF_OK;
    settle(o, (int)target);
    o->target[target] = *at;
    o->length[target] = n;
    o->pending[target] = malloc(n + 1);
    assert_non_null(o->pending[target]);
    *at = o->pending[target] + 1;
    return QF_OK;
}

static uint64_t scale_index(const qf_job *job, uint64_t r, uint64_t c)
{
    if (job->scale_count == 1)
        return 0;
    return r / job->row_div * job->row_mul + r % job->row_mod +
           (job->col_div ? c / job->col_div : 0);
}

/* The definition, one element at a time. */
static int8_t value_at(const qf_job *job, const float *x, uint64_t r, uint64_t c)
{
    float v = x[job->transposed ? c * job->rows + r : r * job->cols + c];
    if (job->fold)
        v *= job->fold[r / job->fold_div];
    float lo = -(float)(1 << (job->bits - 1)), q = rintf(v / job->scales[scale_index(job, r, c)]);
    return (int8_t)(q < lo ? lo : q > -lo - 1 ? -lo - 1 : q);
}

static void expect(const qf_job *job, const float *x, qf_format format, unsigned char *out)
{
    memset(out, 0, qf_job_bytes(job, format));
    for (uint64_t r = 0; r < job->rows; r++) {
        for (uint64_t c = 0; c < job->cols; c++) {
            uint64_t i = r * job->cols + c;
            int8_t q = value_at(job, x, r, c);
            float f = (float)q;
            switch (format) {
            case QF_FORMAT_INT8:
                out[i] = (unsigned char)q;
                break;
            case QF_FORMAT_INT4_FLAT:
                out[i / 2] |= (unsigned char)((q & 15) << (i % 2 * 4));
                break;
            case QF_FORMAT_INT4_ROWS:
                out[r / 2 * job->cols + c] |= (unsigned char)((q & 15) << (r % 2 * 4));
                break;
            case QF_FORMAT_FLOAT_SCALED:
                f *= job->scales[scale_index(job, r, c)];
                memcpy(out + 4 * i, &f, 4);
                break;
            default:
                memcpy(out + 4 * i, &f, 4);
            }
        }
    }
}

static void run_shifted(qf_job *job, const float *x, bool shift)
{
    output o = {.shift = shift};
    qf_sink sink = {give_room, &o};
    unsigned char *want[2];
    qf_varint_index index;
    qf_scratch scratch = {0};
    qf_error err;
    assert_int_equal(
        qf_varint_index_build(&job->source, job->rows * job->cols, "f", "t", &index, &err), QF_OK);
    for (int t = 0; t < 2; t++) {
        o.size[t] = qf_job_bytes(job, job->out[t].format);
        o.data[t] = malloc(o.size[t] + 1);
        want[t] = malloc(o.size[t] + 1);
        memset(o.data[t], 0xee, o.size[t]);
        job->out[t].file = t;
        job->out[t].placed = true;
        expect(job, x, job->out[t].format, want[t]);
    }
    for (uint64_t b = qf_job_blocks(job); b-- > 0;) /* any order will do */
        assert_int_equal(qf_job_run_block(job, &index, b, &scratch, &sink, &err), QF_OK);
    for (int t = 0; t < 2; t++) {
        settle(&o, t);
        assert_memory_equal(o.data[t], want[t], o.size[t]);
        free(o.data[t]);
        free(want[t]);
    }
    qf_scratch_release(&scratch);
    qf_varint_index_release(&index);
}

static void run(qf_job *job, const float *x)
{
    run_shifted(job, x, false);
    run_shifted(job, x, true);
}

static float *random_floats(size_t n, float scale)
{
    float *x = malloc((n + 1) * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(rand() % 4001 - 2000) * 0.125f * scale;
    return x;
}

static qf_job job_for(const float *x, uint64_t rows, uint64_t cols, int bits)
{
    static const float one = 0.37f;
    return (qf_job){.layer = "l",
                    .tensor = "t",
                    .source = {(const unsigned char *)x, rows * cols * 4, QF_FIELD_RAW_DATA, 0, 0},
                    .data_type = ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT,
                    .rows = rows,
                    .cols = cols,
                    .scales = &one,
                    .scale_count = 1,
                    .row_div = 1,
                    .row_mul = 1,
                    .row_mod = 1,
                    .bits = bits};
}

static void test_shapes(void **state)
{
    (void)state;
    static const uint64_t shapes[][2] = {{1, 1},     {2, 1},     {1, 7},     {3, 5},
                                         {64, 27},   {512, 300}, {2, 70000}, {70000, 2},
                                         {6, 40000}, {1000, 513}};
    static const qf_format formats[] = {QF_FORMAT_INT8, QF_FORMAT_INT4_FLAT, QF_FORMAT_INT4_ROWS};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        uint64_t rows = shapes[i][0], cols = shapes[i][1];
        float *x = random_floats(rows * cols, 1);
        float *scales = random_floats(rows + cols, 1);
        for (size_t k = 0; k < rows + cols; k++)
            scales[k] = fabsf(scales[k]) + 0.01f;
        for (int f = 0; f < 3; f++) {
            if (formats[f] == QF_FORMAT_INT4_ROWS && rows % 2)
                continue;
            for (int transposed = 0; transposed < 2; transposed++) {
                for (int variant = 0; variant < 6; variant++) {
                    int how = variant % 3; /* per tensor, per row, per column */
                    bool compact = variant >= 3;
                    if (transposed && how == 1)
                        continue;
                    qf_job job = job_for(x, rows, cols, f ? 4 : 8);
                    job.transposed = transposed;
                    job.out[0].format = formats[f];
                    job.out[1].format = compact    ? QF_FORMAT_INT8
                                        : how == 1 ? QF_FORMAT_FLOAT_SCALED
                                                   : QF_FORMAT_FLOAT;
                    if (how) {
                        job.scales = scales;
                        job.scale_count = how == 1 ? rows : cols;
                        job.row_mul = how == 1;
                        job.col_div = how == 2;
                    }
                    if (job.scale_count == 1)
                        job.scales = scales;
                    run(&job, x);
                }
            }
        }
        free(x);
        free(scales);
    }
}

/* ConvTranspose [Cin, Cout/g, K] with g groups, both ways it is laid out. */
static void test_grouped_scales(void **state)
{
    (void)state;
    const uint64_t group = 2, cin = 6, cout = 5, k = 9;
    float *x = random_floats(cin * cout * k, 1), *scales = random_floats(group * cout, 1);
    for (size_t i = 0; i < group * cout; i++)
        scales[i] = fabsf(scales[i]) + 0.01f;
    qf_job plain = job_for(x, cin * cout, k, 8), packed = job_for(x, cin, cout * k, 4);
    plain.scales = packed.scales = scales;
    plain.scale_count = packed.scale_count = group * cout;
    plain.row_div = cin / group * cout;
    plain.row_mul = plain.row_mod = cout;
    packed.row_div = cin / group;
    packed.row_mul = cout;
    packed.row_mod = 1;
    packed.col_div = k;
    for (uint64_t ci = 0; ci < cin; ci++) {
        for (uint64_t co = 0; co < cout; co++) {
            uint64_t want = ci / (cin / group) * cout + co; /* facts 4.3 */
            assert_int_equal(scale_index(&plain, ci * cout + co, 0), want);
            assert_int_equal(scale_index(&packed, ci, co * k + k - 1), want);
        }
    }
    plain.out[0].format = QF_FORMAT_INT8;
    packed.out[0].format = QF_FORMAT_INT4_ROWS;
    plain.out[1].format = packed.out[1].format = QF_FORMAT_FLOAT;
    run(&plain, x);
    run(&packed, x);
    free(x);
    free(scales);
}

static void test_fold(void **state)
{
    (void)state;
    const uint64_t rows = 33, cols = 2500;
    float *x = random_floats(rows * cols, 1), *fold = random_floats(rows, 0.01f);
    qf_job job = job_for(x, rows, cols, 8);
    job.fold = fold;
    job.fold_div = 1;
    job.out[0].format = QF_FORMAT_INT8;
    job.out[1].format = QF_FORMAT_FLOAT;
    run(&job, x);
    free(x);
    free(fold);
}

/* float16 stored as varints in int32_data, and as raw bytes, give what float32 gives. */
static void test_encodings(void **state)
{
    (void)state;
    const uint64_t rows = 50, cols = 301, n = rows * cols;
    float *x = random_floats(n, 1);
    unsigned char *varints = malloc(n * 3), *raw = malloc(n * 2 + 1);
    size_t length = 0;
    for (uint64_t i = 0; i < n; i++) {
        uint16_t h = qf_float_to_half(x[i]);
        length += qf_varint_put(varints + length, h);
        memcpy(raw + 1 + 2 * i, &h, 2);
    }
    for (int transposed = 0; transposed < 2; transposed++) {
        for (int encoding = 0; encoding < 2; encoding++) {
            qf_job job = job_for(x, rows, cols, 8);
            job.transposed = transposed;
            job.data_type = ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16;
            job.source = encoding ? (qf_span){varints, length, QF_FIELD_INT32_DATA, 0, 0}
                                  : (qf_span){raw + 1, 2 * n, QF_FIELD_RAW_DATA, 0, 0};
            job.out[0].format = QF_FORMAT_INT8;
            job.out[1].format = QF_FORMAT_FLOAT;
            run(&job, x);
        }
    }
    qf_varint_index index;
    qf_error err;
    qf_span span = {varints, length, QF_FIELD_INT32_DATA, 0, 0};
    assert_int_equal(qf_varint_index_build(&span, n + 1, "f", "t", &index, &err), QF_ERR_INPUT);
    assert_int_equal(qf_varint_index_build(&span, n - 1, "f", "t", &index, &err), QF_ERR_INPUT);
    varints[length - 1] |= 0x80; /* cut off in the middle of a varint */
    assert_int_equal(qf_varint_index_build(&span, n, "f", "t", &index, &err), QF_ERR_INPUT);
    free(x);
    free(varints);
    free(raw);
}

static void test_nonfinite(void **state)
{
    (void)state;
    float x[] = {1, NAN, 3};
    qf_job job = job_for(x, 1, 3, 8);
    qf_varint_index index = {0};
    qf_scratch scratch = {0};
    qf_error err;
    assert_int_equal(qf_job_run_block(&job, &index, 0, &scratch, NULL, &err), QF_ERR_INPUT);
    assert_string_equal(err.item, "l");
    qf_scratch_release(&scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),    cmocka_unit_test(test_grouped_scales),
        cmocka_unit_test(test_fold),      cmocka_unit_test(test_encodings),
        cmocka_unit_test(test_nonfinite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
