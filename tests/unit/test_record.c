/* SPDX-License-Identifier: Apache-2.0 */
/* Record files: the public functions and the accessors, and every record of the golden files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/spill.h"
#include "quant/record.h"

static qf_record *parse(const char *text)
{
    qf_record *record = NULL;
    qf_error err;
    if (qf_record_parse("r.txt", text, strlen(text), &record, &err) != QF_OK)
        fail_msg("%s", err.message);
    return record;
}

/* Writes `text` to a new file, whose name goes to `path`. */
static void write_file(char path[64], const char *text)
{
    strcpy(path, "/tmp/qf_record_XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

static void test_fields(void **state)
{
    (void)state;
    qf_record *record =
        parse("record {\n"
              "  key: \"conv1\"\n"
              "  value {\n"
              "    scale_d: 0.5 offset_d: -3\n"
              "    scale_w: 0.25 scale_w: 2 offset_w: [0, 0]\n"
              "    shift_bit: 7 tensor_balance_factor: 1.5 skip_fusion: true\n"
              "    dst_type: \"INT4\" act_type: \"INT16\" wts_type: \"INT8\"\n"
              "    fakequant_precision_mode: \"FORCE_FP16_QUANT\"\n"
              "    scale_h: 3 offset_h: 4 scale_r: 5 offset_r: 6\n"
              "  }\n"
              "  kv_cache_value { scale: 1 offset: 2 }\n"
              "}\n"
              "prune_record { producer { name: \"p\" attr { type: INTS ints: 1 } } }");
    assert_int_equal(qf_record_count(record), 1);
    assert_string_equal(qf_record_key(record, 0), "conv1");
    const AMCTPytorchProto__ScaleOffsetRecord *message = qf_record_message(record);
    const AMCTPytorchProto__SingleLayerRecord *v = message->record[0]->value;
    assert_true(v->has_scale_d && v->scale_d == 0.5f);
    assert_true(v->has_offset_d && v->offset_d == -3);
    assert_int_equal(v->n_scale_w, 2);
    assert_true(v->scale_w[0] == 0.25f && v->scale_w[1] == 2.0f);
    assert_int_equal(v->n_offset_w, 2);
    assert_true(v->n_shift_bit == 1 && v->shift_bit[0] == 7);
    assert_true(v->n_tensor_balance_factor == 1 && v->tensor_balance_factor[0] == 1.5f);
    assert_true(v->has_skip_fusion && v->skip_fusion);
    assert_string_equal(v->dst_type, "INT4");
    assert_string_equal(v->act_type, "INT16");
    assert_string_equal(v->wts_type, "INT8");
    assert_string_equal(v->fakequant_precision_mode, "FORCE_FP16_QUANT");
    assert_true(v->has_scale_h && v->scale_h == 3.0f && v->has_offset_h && v->offset_h == 4);
    assert_true(v->n_scale_r == 1 && v->scale_r[0] == 5.0f);
    assert_true(v->n_offset_r == 1 && v->offset_r[0] == 6);
    const AMCTPytorchProto__SingleLayerKVCacheRecord *kv = message->record[0]->kv_cache_value;
    assert_true(kv->n_scale == 1 && kv->scale[0] == 1.0f && kv->n_offset == 1);
    assert_int_equal(message->n_prune_record, 1);
    const AMCTPytorchProto__AttrProto *attr = message->prune_record[0]->producer[0]->attr[0];
    assert_int_equal(attr->type, AMCTPYTORCH_PROTO__ATTR_PROTO__ATTRIBUTE_TYPE__INTS);
    assert_true(attr->n_ints == 1 && attr->ints[0] == 1);
    qf_record_close(record);
}

/* The field numbers are not in the text, but must be right all the same. */
static void test_field_numbers(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t id;
    } numbers[] = {
        {"scale_d", 1},     {"offset_d", 2},  {"scale_w", 3},
        {"offset_w", 4},    {"shift_bit", 5}, {"tensor_balance_factor", 6},
        {"skip_fusion", 9}, {"dst_type", 10}, {"act_type", 11},
        {"wts_type", 12},   {"scale_h", 21},  {"fakequant_precision_mode", 13},
        {"offset_h", 22},   {"scale_r", 23},  {"offset_r", 24},
    };
    const ProtobufCMessageDescriptor *desc = &amctpytorch_proto__single_layer_record__descriptor;
    assert_int_equal(desc->n_fields, sizeof numbers / sizeof numbers[0]);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        const ProtobufCFieldDescriptor *field =
            protobuf_c_message_descriptor_get_field_by_name(desc, numbers[i].name);
        assert_non_null(field);
        assert_int_equal(field->id, numbers[i].id);
    }
}

static void test_absent_fields(void **state)
{
    (void)state;
    qf_record *record = parse("record { value { } } record { }");
    const AMCTPytorchProto__MapFiledEntry *entry = qf_record_message(record)->record[0];
    assert_null(entry->key);
    assert_null(entry->kv_cache_value);
    assert_null(qf_record_message(record)->record[1]->value);
    const AMCTPytorchProto__SingleLayerRecord *v = entry->value;
    assert_false(v->has_scale_d || v->has_offset_d || v->has_skip_fusion || v->has_scale_h);
    assert_int_equal(v->n_scale_w + v->n_offset_w + v->n_shift_bit, 0);
    assert_null(v->dst_type);
    assert_null(v->act_type);
    assert_null(v->wts_type);
    assert_null(v->fakequant_precision_mode);
    assert_string_equal(qf_record_key(record, 0), "");
    assert_string_equal(qf_record_key(record, 2), "");
    qf_record_close(record);
}

static void test_lines(void **state)
{
    (void)state;
    qf_record *record = parse("# first\nrecord { key: 'a' }\n\nprune_record { }\n"
                              "record: [{ key: 'b' },\n{ key: 'c' }] record <\nkey: 'd'>");
    assert_int_equal(qf_record_count(record), 4);
    static const uint32_t lines[] = {2, 5, 6, 6, 0};
    for (size_t i = 0; i < 5; i++)
        assert_int_equal(qf_record_line(record, i), lines[i]);
    assert_string_equal(qf_record_path(record), "r.txt");
    assert_null(qf_record_id(record));
    qf_record_close(record);
}

static void test_report(void **state)
{
    (void)state;
    qf_record *record = parse("record {\n key: 'a' key: 'conv'\n value { act_type: 'INT8'\n"
                              "act_type: 'INT16' scale_w: 1 scale_w: 2 } }\n"
                              "record { key: 'b' value { scale_d: 1 } value { scale_d: 1 } }\n"
                              "prune_record { selective_prune { name: 'x' name: 'y' } }");
    qf_diagnostics *list = qf_diagnostics_create();
    qf_record_report(record, list);
    static const struct {
        const char *item, *says;
        uint32_t line, column;
    } expect[] = {
        {"conv", "key is given more than once", 2, 11},
        {"conv", "act_type is given more than once", 4, 1},
        {"b", "scale_d is given more than once", 5, 48},
        {"", "name is given more than once", 6, 44},
    };
    assert_int_equal(qf_diagnostics_errors(list), 0);
    assert_int_equal(qf_diagnostics_count(list), 4);
    for (size_t i = 0; i < 4; i++) {
        qf_diagnostic d = qf_diagnostics_at(list, i);
        assert_string_equal(d.item, expect[i].item);
        assert_non_null(strstr(d.message, expect[i].says));
        assert_int_equal(d.line, expect[i].line);
        assert_int_equal(d.column, expect[i].column);
        assert_string_equal(d.file, "r.txt");
    }
    assert_string_equal(qf_record_message(record)->record[0]->value->act_type, "INT16");
    qf_record_report(record, NULL);
    qf_diagnostics_free(list);
    qf_record_close(record);
}

static void test_report_is_bounded(void **state)
{
    (void)state;
    char *text = calloc(1, 100000);
    assert_non_null(text);
    strcpy(text, "record { ");
    for (size_t i = 0, n = strlen(text); i < 5001; i++, n += 8)
        strcpy(text + n, "key: '' ");
    strcat(text, "}");
    qf_record *record = parse(text);
    free(text);
    qf_diagnostics *list = qf_diagnostics_create();
    qf_record_report(record, list);
    assert_int_equal(qf_diagnostics_count(list), 101);
    assert_non_null(strstr(qf_diagnostics_at(list, 100).message, "4900 more"));
    qf_diagnostics_free(list);
    qf_record_close(record);
}

static void test_empty(void **state)
{
    (void)state;
    qf_record *record = parse("");
    assert_int_equal(qf_record_count(record), 0);
    char *out;
    size_t length = 1;
    assert_int_equal(qf_record_format(record, &out, &length, NULL), QF_OK);
    assert_int_equal(length, 0);
    assert_string_equal(out, "");
    free(out);
    qf_record_close(record);
    assert_int_equal(qf_record_parse("r", NULL, 0, &record, NULL), QF_OK);
    qf_record_close(record);
    qf_record_close(NULL);
    assert_int_equal(qf_record_count(NULL), 0);
}

static void test_open(void **state)
{
    (void)state;
    char path[64];
    write_file(path, "record { key: 'a' }");
    qf_record *record;
    qf_error err;
    assert_int_equal(qf_record_open(path, &record, &err), QF_OK);
    assert_string_equal(qf_record_key(record, 0), "a");
    assert_string_equal(qf_record_path(record), path);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    const qf_file_id *id = qf_record_id(record);
    assert_non_null(id);
    assert_true(id->device == st.st_dev && id->inode == st.st_ino);
    assert_int_equal(id->size, st.st_size);
    qf_record_close(record);
    unlink(path);
}

static void test_open_failures(void **state)
{
    (void)state;
    qf_record *record = (qf_record *)(uintptr_t)1, *before = record;
    qf_error err;
    char path[64];
    write_file(path, "record {\n  kay: 'a' }");
    assert_int_equal(qf_record_open(path, &record, &err), QF_ERR_INPUT);
    assert_int_equal(err.line, 2);
    assert_int_equal(err.column, 3);
    assert_string_equal(err.file, path);
    assert_non_null(strstr(err.message, "did you mean key?"));
    /* one byte more than is accepted, as a hole */
    assert_int_equal(truncate(path, (off_t)QF_RECORD_MAX_BYTES + 1), 0);
    assert_int_equal(qf_record_open(path, &record, &err), QF_ERR_INPUT);
    unlink(path);
    assert_int_equal(qf_record_open(path, &record, &err), QF_ERR_INPUT);
    assert_int_equal(qf_record_open("/tmp", &record, &err), QF_ERR_INPUT);
    assert_int_equal(qf_record_open(NULL, &record, &err), QF_ERR_USAGE);
    assert_int_equal(qf_record_open(path, NULL, &err), QF_ERR_USAGE);
    assert_int_equal(qf_record_parse(NULL, "", 0, &record, &err), QF_ERR_USAGE);
    assert_int_equal(qf_record_parse("r", NULL, 5, &record, &err), QF_ERR_USAGE);
    assert_int_equal(qf_record_parse("r", "", (size_t)QF_RECORD_MAX_BYTES + 1, &record, &err),
                     QF_ERR_INPUT);
    assert_int_equal(qf_record_format(NULL, NULL, NULL, &err), QF_ERR_USAGE);
    assert_ptr_equal(record, before);
}

static const char *golden_folder(void)
{
    const char *given = getenv("QUANTFOLD_GOLDEN");
    if (given)
        return given;
#ifdef QUANTFOLD_SOURCE_DIR
    const char *source = QUANTFOLD_SOURCE_DIR;
#else
    const char *source = getenv("QUANTFOLD_SOURCE_DIR");
#endif
    static char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/../shared/golden", source ? source : ".");
    return path;
}

/* Reads a golden record and writes it: not a byte may differ. */
static bool check_golden(const char *path)
{
    char *text, *out;
    size_t length, out_length;
    qf_error err;
    qf_record *record;
    if (access(path, R_OK) != 0)
        return false;
    assert_int_equal(qf_file_read_text(path, "record", 1 << 24, &text, &length, NULL, &err), QF_OK);
    if (qf_record_open(path, &record, &err) != QF_OK)
        fail_msg("%s", err.message);
    assert_true(qf_record_count(record) > 0);
    assert_int_equal(qf_record_format(record, &out, &out_length, &err), QF_OK);
    if (out_length != length || memcmp(out, text, length) != 0)
        fail_msg("%s changes when it is read and written", path);
    qf_diagnostics *list = qf_diagnostics_create();
    qf_record_report(record, list);
    assert_int_equal(qf_diagnostics_count(list), 0);
    qf_diagnostics_free(list);
    qf_record_close(record);
    qf_spill_free(text);
    free(out);
    return true;
}

static void test_golden(void **state)
{
    (void)state;
    const char *folder = golden_folder();
    DIR *dir = opendir(folder);
    if (!dir)
        skip();
    size_t count = 0;
    for (const struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
        char path[PATH_MAX + 300];
        snprintf(path, sizeof path, "%s/%s/record.txt", folder, entry->d_name);
        count += check_golden(path);
    }
    closedir(dir);
    assert_true(count > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fields),        cmocka_unit_test(test_field_numbers),
        cmocka_unit_test(test_absent_fields), cmocka_unit_test(test_lines),
        cmocka_unit_test(test_report),        cmocka_unit_test(test_report_is_bounded),
        cmocka_unit_test(test_empty),         cmocka_unit_test(test_open),
        cmocka_unit_test(test_open_failures), cmocka_unit_test(test_golden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
