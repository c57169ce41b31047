/* SPDX-License-Identifier: Apache-2.0 */
/* Finding the node that a record's key, or a config's layer name, means. */
#include "quant/match.h"

#include "quant/qdq.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* /a/b/Conv -> a.b; the exporter repeats list names (/features/features.0/Conv -> features.0) and
 * marks wrapped modules (sub_module). NULL if the name is not of that form. */
static char *scope_of(qf_arena *arena, const char *node)
{
    if (node[0] != '/')
        return NULL;
    size_t n = strlen(node), last = 0, at = 0;
    char *scope = qf_arena_alloc(arena, n + 1);
    if (!scope)
        return NULL;
    const char *part = node + 1;
    for (const char *slash; (slash = strchr(part, '/')); part = slash + 1) {
        size_t length = (size_t)(slash - part), before = at - last;
        if (strncmp(part, "sub_module", 10) == 0 && (length == 10 || part[10] == '_'))
            continue;
        bool repeats = at && length > before && part[before] == '.' &&
                       strncmp(part, scope + last, before) == 0;
        if (repeats)
            at = last;
        else if (at)
            scope[at++] = '.';
        last = at;
        memcpy(scope + at, part, length);
        at += length;
    }
    scope[at] = '\0';
    return at ? scope : NULL;
}

/* Strips ".weight" and a ".sub_module" before it; NULL if the tensor is not called so. */
static char *module_of(qf_arena *arena, const char *tensor)
{
    static const char *const endings[] = {".sub_module.weight", ".weight"};
    size_t n = strlen(tensor);
    for (size_t i = 0; i < 2; i++) {
        size_t m = strlen(endings[i]);
        if (n > m && strcmp(tensor + n - m, endings[i]) == 0)
            return qf_arena_strndup(arena, tensor, n - m);
    }
    return NULL;
}

typedef struct entry entry;
struct entry {
    const qf_node *node;
    entry *next; /* another node under the same word */
};

static bool add(qf_matcher *m, qf_strmap *map, const char *word, const qf_node *node)
{
    entry *e = qf_arena_alloc(&m->arena, sizeof *e);
    if (!e)
        return false;
    e->node = node;
    e->next = qf_strmap_get(map, word);
    return qf_strmap_set(map, word, e);
}

static const char *weight_name(const qf_node *node)
{
    qf_probe probe;
    qf_layer_probe(node, 0, &probe);
    qf_value *value = qf_qdq_source(probe.weight_value);
    return value ? value->name : NULL;
}

qf_status qf_matcher_init(qf_matcher *m, const qf_ir *ir, qf_error *err)
{
    *m = (qf_matcher){.ir = ir};
    qf_arena_init(&m->arena);
    for (size_t i = 0; i < ir->node_count; i++) {
        const qf_node *node = ir->by_id[i];
        if (!node || qf_op_of(node) == QF_OP_NONE)
            continue;
        const char *weight = weight_name(node);
        char *module = weight ? module_of(&m->arena, weight) : NULL;
        char *scope = scope_of(&m->arena, node->name);
        if ((module && !add(m, &m->by_weight, module, node)) ||
            (scope && !add(m, &m->by_scope, scope, node))) {
            qf_matcher_release(m);
            return qf_fail_memory(err);
        }
    }
    return QF_OK;
}

void qf_matcher_release(qf_matcher *m)
{
    qf_strmap_release(&m->by_weight);
    qf_strmap_release(&m->by_scope);
    qf_arena_release(&m->arena);
}

static void list_candidates(const entry *e, char *out, size_t cap)
{
    size_t at = 0;
    out[0] = '\0';
    for (; e && at + 1 < cap; e = e->next) {
        int n = snprintf(out + at, cap - at, "%s'%s'", at ? ", " : "", e->node->name);
        at += n > 0 ? (size_t)n : 0;
    }
}

static const qf_node *pick(const entry *e, const char *how, qf_match *out)
{
    if (e->next) {
        char list[400];
        list_candidates(e, list, sizeof list);
        snprintf(out->problem, sizeof out->problem,
                 "the key is ambiguous: by %s it can mean %s; use a node name", how, list);
        return NULL;
    }
    return e->node;
}

typedef struct guess {
    const char *word;
    unsigned distance;
} guess;

static void consider(guess *best, const char *key, const char *word)
{
    unsigned d = qf_edit_distance(key, word);
    if (d < best->distance)
        *best = (guess){word, d};
}

/* The nearest thing that the key could have been, for "did you mean". */
static const char *nearest(const qf_matcher *m, const char *key)
{
    enum { MOST = 10000 };
    guess best = {.distance = (unsigned)(strlen(key) / 3 + 2)};
    const qf_strmap *maps[] = {&m->by_weight, &m->by_scope};
    for (size_t i = 0; i < m->ir->node_count && i < MOST; i++) {
        const qf_node *node = m->ir->by_id[i];
        if (node && qf_op_of(node) != QF_OP_NONE)
            consider(&best, key, node->name);
    }
    for (size_t k = 0; k < 2; k++) {
        for (size_t i = 0; i < maps[k]->cap && i < MOST; i++) {
            if (maps[k]->slots[i].key)
                consider(&best, key, maps[k]->slots[i].key);
        }
    }
    return best.word;
}

void qf_matcher_find(qf_matcher *m, const char *key, qf_match *out)
{
    const entry *e;
    *out = (qf_match){0};
    out->node = qf_strmap_get(&m->ir->node_names, key);
    const char *colon = strchr(key, ':');
    if (!out->node && colon && colon > key) {
        /* "layer:input_index" is a tensor record (facts 1.3) */
        char layer[512];
        snprintf(layer, sizeof layer, "%.*s", (int)(colon - key), key);
        out->node = qf_strmap_get(&m->ir->node_names, layer);
        out->is_tensor = out->node != NULL;
    }
    if (out->node && out->node->name_shared) {
        out->node = NULL;
        snprintf(out->problem, sizeof out->problem,
                 "the key is ambiguous: more than one node of the model is called so; give them "
                 "names of their own");
    }
    if (out->node || out->problem[0])
        return;
    if ((e = qf_strmap_get(&m->by_weight, key)))
        out->node = pick(e, "weight name", out);
    else if ((e = qf_strmap_get(&m->by_scope, key)))
        out->node = pick(e, "exporter scope", out);
    if (out->node || out->problem[0])
        return;
    /* suggestions take time; a record that is all wrong needs no more than a few */
    enum { SUGGESTIONS = 100 };
    const char *near = m->misses++ < SUGGESTIONS ? nearest(m, key) : NULL;
    snprintf(out->problem, sizeof out->problem,
             "no node has this name, no weight is called '%.60s.weight', and no exporter scope "
             "fits%s%s%s; `quantfold inspect` lists the layers",
             key, near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
}
