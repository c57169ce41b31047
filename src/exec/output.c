/* SPDX-License-Identifier: Apache-2.0 */
#include "exec/output.h"

#include "base/spill.h"
#include "exec/fingerprint.h"
#include "exec/manifest.h"
#include "exec/outcome.h"
#include "exec/report.h"
#include "exec/share.h"

/* ---- writing ---- */

static bool is_ours(const qf_outcome *o, size_t file)
{
    return !o->owners || o->owners[file] == o->options->shard;
}

static qf_status create_files(qf_outcome *o, qf_error *err)
{
    const qf_layout *layout = o->output->layout;
    qf_status status = QF_OK;
    for (size_t i = 0; status == QF_OK && i < layout->file_count; i++) {
        size_t index;
        const qf_layout_file *f = &layout->files[i];
        status = is_ours(o, i) ? qf_stage_create(&o->stage, f->name, f->size, &index, err)
                               : qf_stage_expect(&o->stage, f->name, f->size, err);
    }
    return status;
}

static void count_bytes(qf_outcome *o)
{
    const qf_layout *layout = o->output->layout;
    for (size_t i = 0; i < layout->file_count; i++)
        o->totals.bytes_written += is_ours(o, i) ? layout->files[i].size : 0;
    for (size_t i = 0; i < o->piece_count; i++) {
        qf_part p = o->pieces[i];
        qf_place places[QF_SLOTS];
        qf_part_places(p, o->output->jobs, layout, places);
        bool ours = false;
        for (int s = 0; s < QF_SLOTS; s++)
            ours |= places[s].used && is_ours(o, (size_t)places[s].file);
        if (ours && p.kind != QF_PART_LITERAL)
            o->totals.bytes_read += p.kind == QF_PART_JOB ? o->output->jobs[p.index]->source.length
                                                          : layout->copies[p.index].source.length;
    }
}

static qf_status write_pieces(qf_outcome *o, qf_error *err)
{
    const qf_run_options *options = o->options;
    qf_work work = {.jobs = o->output->jobs,
                    .job_count = o->output->job_count,
                    .layout = o->output->layout,
                    .pieces = o->pieces,
                    .piece_count = o->piece_count,
                    .journal = o->noted ? &o->journal : NULL,
                    .owners = o->owners,
                    .shard = options->shard,
                    .statistics = o->manifest != NULL,
                    .stats = options->stats,
                    .sources = o->output->sources,
                    .source_count = o->output->source_count,
                    .io = qf_io_choose(options->io, !options->no_sync, o->totals.bytes_written),
                    .memory_limit = options->memory_limit,
                    .threads = options->threads,
                    .progress = options->progress,
                    .progress_user = options->progress_user};
    o->stage.direct = work.io == QF_IO_DIRECT;
    qf_status status = create_files(o, err);
    if (status == QF_OK)
        status = qf_work_run(&work, &o->stage, &o->totals.bytes_kept, err);
    return qf_files_check(work.sources, work.source_count, status, err);
}

static qf_status put_in_place(qf_outcome *o, qf_error *err)
{
    qf_status status = QF_OK;
    if (o->manifest)
        status = qf_manifest_stage(&o->stage, o->output->manifest_name, o->manifest,
                                   o->journal.results, o->piece_count, &o->journal.stats, err);
    else
        status = qf_manifest_drop(&o->stage, o->output->manifest_name, err);
    return status == QF_OK ? qf_stage_commit(&o->stage, err) : status;
}

static qf_status finish_shard(qf_outcome *o, qf_error *err)
{
    qf_status status = qf_stage_finish(&o->stage, err);
    return status == QF_OK ? qf_journal_finish(&o->journal, !o->options->no_sync, err) : status;
}

/* ---- the whole ---- */

static qf_status check_options(const qf_run_options *options, qf_error *err)
{
    if (options->shard_count > QF_SHARDS_MOST || (options->shard && !options->shard_count) ||
        (options->shard_count && options->shard >= options->shard_count))
        return qf_fail(err, QF_ERR_USAGE,
                       "there is no shard %u of %u: shards are numbered from 0, and there are at "
                       "most %d",
                       options->shard, options->shard_count, QF_SHARDS_MOST);
    return QF_OK;
}

static qf_status prepare(qf_outcome *o, qf_error *err)
{
    const qf_output *out = o->output;
    const qf_run_options *options = o->options;
    qf_status status = check_options(options, err);
    if (status == QF_OK)
        status = qf_order_build(out->jobs, out->job_count, out->layout, &o->pieces, &o->piece_count,
                                err);
    if (status == QF_OK && o->sharded)
        status = qf_share_files(out->layout, out->jobs, o->pieces, o->piece_count,
                                options->shard_count, &o->owners, err);
    if (status == QF_OK && o->kept)
        status = qf_fingerprint(out, options->manifest || options->stats, options->stats,
                                &o->fingerprint, err);
    if (status == QF_OK && (options->manifest || options->stats))
        status = qf_manifest_check(out->folder, out->manifest_name, out->layout, err);
    if (status == QF_OK && (options->manifest || options->stats))
        status = qf_manifest_template(out, o->pieces, o->piece_count, &o->manifest, err);
    for (size_t i = 0; status == QF_OK && options->stats && i < o->piece_count; i++)
        o->weight_count +=
            o->pieces[i].kind == QF_PART_JOB && out->jobs[o->pieces[i].index]->bits != 0;
    count_bytes(o);
    return status;
}

static qf_status run(qf_outcome *o, qf_error *err)
{
    bool whole = false;
    const qf_run_options *options = o->options;
    qf_stage_mode mode = o->sharded        ? QF_STAGE_SHARD
                         : options->resume ? QF_STAGE_RESUME
                                           : QF_STAGE_FRESH;
    qf_status status = prepare(o, err);
    if (status == QF_OK)
        status = qf_stage_open(o->output->folder, o->output->prefix, mode, &o->stage, err);
    if (status != QF_OK)
        return status;
    o->staged = true;
    o->stage.unsynced = options->no_sync;
    o->stage.keep = o->kept;
    status = qf_outcome_find_whole(o, &whole, err);
    if (status != QF_OK || whole)
        return status;
    status = qf_outcome_claim(o, err);
    if (status == QF_OK && (o->kept || o->manifest)) {
        status = qf_journal_init(&o->stage, o->piece_count, o->weight_count, &o->journal, err);
        o->noted = status == QF_OK;
    }
    if (status == QF_OK && o->kept)
        status = qf_journal_open(&o->stage, &o->fingerprint, options->shard, qf_outcome_shards(o),
                                 o->stage.resumed, &o->journal, err);
    if (status == QF_OK)
        status = write_pieces(o, err);
    if (status != QF_OK)
        return status;
    status = o->sharded ? finish_shard(o, err) : put_in_place(o, err);
    if (status == QF_OK && !o->sharded)
        o->stage.keep = false;
    return status;
}

qf_status qf_output_run(const qf_output *output, const qf_run_options *options, qf_report **out,
                        qf_error *err)
{
    double start = qf_monotonic_seconds();
    qf_outcome o = {.output = output, .options = options, .sharded = options->shard_count > 0};
    o.kept = o.sharded || options->resume;
    qf_status status = run(&o, err);
    o.totals.seconds = qf_monotonic_seconds() - start;
    if (o.noted)
        qf_journal_close(&o.journal);
    if (o.staged)
        qf_stage_close(&o.stage);
    cJSON_Delete(o.manifest);
    qf_spill_free(o.owners);
    qf_spill_free(o.pieces);
    return status == QF_OK ? qf_report_make(&o.totals, out, err) : status;
}
