/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include "cli/cli.h"
#include "cli/options.h"

static const char help[] =
    "usage: quantfold inspect MODEL.onnx [--json]\n\n"
    "Shows what the model holds and every layer of a quantizable type: the name a record\n"
    "uses for it, its weight, how many channel-wise scales it takes, and why it cannot be\n"
    "quantized where that is so.\n";

static cJSON *layer_json(const qf_layer_candidate *l)
{
    cJSON *item = cJSON_CreateObject();
    cJSON *dims = cJSON_CreateArray();
    cli_json_text(item, "name", l->name);
    cJSON_AddStringToObject(item, "op_type", l->op_type);
    cli_json_text(item, "weight", l->weight);
    cJSON_AddStringToObject(item, "dtype", l->dtype);
    for (size_t i = 0; i < l->rank; i++)
        cJSON_AddItemToArray(dims, cJSON_CreateNumber((double)l->dims[i]));
    cJSON_AddItemToObject(item, "dims", dims);
    cJSON_AddNumberToObject(item, "channels", (double)l->channels);
    cJSON_AddBoolToObject(item, "quantizable", l->quantizable);
    cli_json_text(item, "reason", l->reason);
    return item;
}

static int print_as_json(const qf_model *model, const qf_model_info *info)
{
    cJSON *root = cli_json_root();
    cJSON *layers = cJSON_CreateArray();
    cJSON_AddNumberToObject(root, "ir_version", (double)info->ir_version);
    cJSON_AddNumberToObject(root, "opset", (double)info->opset);
    cli_json_text(root, "producer_name", info->producer_name);
    cli_json_text(root, "producer_version", info->producer_version);
    cli_json_text(root, "graph_name", info->graph_name);
    cJSON_AddNumberToObject(root, "file_bytes", (double)info->file_bytes);
    cJSON_AddNumberToObject(root, "nodes", (double)info->node_count);
    cJSON_AddNumberToObject(root, "graphs", (double)info->graph_count);
    cJSON_AddNumberToObject(root, "tensors", (double)info->tensor_count);
    cJSON_AddNumberToObject(root, "tensor_bytes", (double)info->tensor_bytes);
    cJSON_AddNumberToObject(root, "external_tensors", (double)info->external_count);
    for (size_t i = 0; i < qf_model_layer_count(model); i++) {
        qf_layer_candidate l = qf_model_layer(model, i);
        cJSON_AddItemToArray(layers, layer_json(&l));
    }
    cJSON_AddItemToObject(root, "layers", layers);
    return cli_print_json(root);
}

static void print_layer(const qf_layer_candidate *l)
{
    printf("  %-13s ", l->op_type);
    cli_put_text(stdout, l->name);
    if (*l->weight) {
        printf("  %s[", l->dtype);
        for (size_t i = 0; i < l->rank; i++)
            printf("%s%lld", i ? "," : "", (long long)l->dims[i]);
        printf("] ");
        cli_put_text(stdout, l->weight);
    }
    if (l->quantizable)
        printf("  scales: %s%llu\n", l->channels > 1 ? "1 or " : "",
               (unsigned long long)l->channels);
    else
        printf("  NOT quantizable: %s\n", l->reason);
}

static int print_as_text(const qf_model *model, const qf_model_info *info, const char *path)
{
    char a[32], b[32];
    size_t layers = qf_model_layer_count(model), quantizable = 0;
    for (size_t i = 0; i < layers; i++)
        quantizable += qf_model_layer(model, i).quantizable;
    cli_put_text(stdout, path);
    printf(": ir %lld, opset %lld, producer ", (long long)info->ir_version, (long long)info->opset);
    cli_put_text(stdout, info->producer_name);
    printf(" ");
    cli_put_text(stdout, info->producer_version);
    printf("\n%llu nodes in %llu graph%s, %llu tensors of %s (%llu external), file %s\n",
           (unsigned long long)info->node_count, (unsigned long long)info->graph_count,
           info->graph_count == 1 ? "" : "s", (unsigned long long)info->tensor_count,
           cli_bytes(info->tensor_bytes, a), (unsigned long long)info->external_count,
           cli_bytes(info->file_bytes, b));
    printf("%zu layers of quantizable types, %zu quantizable:\n", layers, quantizable);
    for (size_t i = 0; i < layers; i++) {
        qf_layer_candidate l = qf_model_layer(model, i);
        print_layer(&l);
    }
    return cli_flush() ? EXIT_DONE : EXIT_SYSTEM;
}

int cmd_inspect(int argc, char **argv)
{
    static const cli_option table[] = {{.name = "json", .kind = CLI_FLAG}, {0}};
    bool json = false;
    const char *path = NULL;
    int code = cli_read_options("inspect", help, table, &json, argc, argv, &path);
    if (code >= 0)
        return code;
    if (!path)
        return cli_usage_error("inspect", "one model is expected");
    qf_model *model;
    qf_error err;
    qf_status status = qf_model_open(path, &model, &err);
    if (status != QF_OK) {
        cli_print_error(&err);
        return cli_exit_code(status);
    }
    qf_model_info info = qf_model_describe(model);
    code = json ? print_as_json(model, &info) : print_as_text(model, &info, path);
    qf_model_close(model);
    return code;
}
