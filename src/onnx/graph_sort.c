/* SPDX-License-Identifier: Apache-2.0 */
/* Putting a graph's nodes into an order in which producers come first. */
#include "base/spill.h"
#include "onnx/graph.h"

/* The node of `graph` that `node` is, or is nested in; NULL if it is elsewhere. */
static qf_node *ancestor_in(const qf_graph *graph, qf_node *node)
{
    while (node && node->graph != graph)
        node = node->graph->owner;
    return node;
}

static size_t node_count(const qf_graph *graph)
{
    size_t n = 0;
    for (const qf_node *node = graph->first; node; node = node->next)
        n++;
    return n;
}

/* Leaves the position of each node in `order`. */
bool qf_graph_is_sorted(const qf_graph *graph)
{
    size_t i = 0;
    for (qf_node *node = graph->first; node; node = node->next)
        node->order = ++i;
    for (const qf_value *v = graph->first_value; v; v = v->next) {
        if (!v->producer || v->dropped)
            continue;
        for (size_t u = 0; u < v->use_count; u++) {
            const qf_node *user = ancestor_in(graph, v->uses[u].node);
            if (user && user->order <= v->producer->order)
                return false;
        }
    }
    return true;
}

/* Kahn's algorithm with a FIFO: nodes that wait for nothing keep their order. `order` becomes the
 * number of values a node still waits for. False if the graph has a cycle. */
static bool sort(const qf_graph *graph, qf_node **sorted)
{
    size_t head = 0, tail = 0, total = node_count(graph);
    for (qf_node *node = graph->first; node; node = node->next)
        node->order = 0;
    for (qf_value *v = graph->first_value; v; v = v->next) {
        if (!v->producer || v->dropped)
            continue;
        for (size_t u = 0; u < v->use_count; u++) {
            qf_node *user = ancestor_in(graph, v->uses[u].node);
            if (user)
                user->order++;
        }
    }
    for (qf_node *node = graph->first; node; node = node->next) {
        if (!node->order)
            sorted[tail++] = node;
    }
    while (head < tail) {
        const qf_node *node = sorted[head++];
        for (size_t o = 0; o < node->output_count; o++) {
            const qf_value *v = node->outputs[o];
            for (size_t u = 0; v && u < v->use_count; u++) {
                qf_node *user = ancestor_in(graph, v->uses[u].node);
                if (user && --user->order == 0)
                    sorted[tail++] = user;
            }
        }
    }
    return tail == total;
}

static void relink(qf_graph *graph, qf_node *const *sorted, size_t count)
{
    graph->first = graph->last = NULL;
    for (size_t i = 0; i < count; i++) {
        qf_node *node = sorted[i];
        node->prev = graph->last;
        node->next = NULL;
        *(graph->last ? &graph->last->next : &graph->first) = node;
        graph->last = node;
    }
}

qf_status qf_graph_sort(qf_graph *graph, const char *path, qf_error *err)
{
    if (qf_graph_is_sorted(graph))
        return QF_OK;
    size_t count = node_count(graph);
    qf_node **sorted = qf_spill_alloc(count * sizeof *sorted);
    if (!sorted)
        return qf_fail_memory(err);
    bool acyclic = sort(graph, sorted);
    if (acyclic)
        relink(graph, sorted, count);
    qf_spill_free(sorted);
    if (!acyclic)
        return qf_fail_at(err, QF_ERR_INPUT, (qf_where){.file = path},
                          "the graph has a cycle; ONNX graphs must not");
    return QF_OK;
}
