/*
 * safetensors.c - see safetensors.h.
 *
 * A file is an 8-byte little-endian length N, N bytes of JSON, and the data:
 *
 *     {"name": {"dtype": "BF16", "shape": [64, 128], "data_offsets": [begin, end]}, ...,
 *      "__metadata__": {string: string}}
 *
 * with offsets relative to the first byte after the header.  The format (safetensors, "Format" in
 * its README) allows neither holes nor overlaps nor bytes after the last tensor, and bounds N by
 * 100 MB. A checkpoint comes from the network, so every statement of a header is checked before it
 * is used: what passes can be read without further care.  JSON strictness (UTF-8, duplicate names,
 * depth, finite numbers) is config/json.h's.
 *
 * Source of the format: https://github.com/huggingface/safetensors#format
 */
#include "engine/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/check.h"
#include "config/file.h"
#include "config/json.h"

#define HEADER_BYTES_MAX 100000000u
#define SHARD_MAX 1024
#define PATH_CAP 4096
/* Offsets and dimensions above this are not exact as JSON numbers of cJSON. */
#define EXACT_MAX 9007199254740992.0

static const struct json_limits header_limits = {
    .bytes_max = HEADER_BYTES_MAX, .nodes_max = 8u << 20, .depth_max = 4};

static const struct {
    const char *name;
    unsigned bits;
} dtypes[] = {
#define X(name, bits) {#name, bits},
    ENG_ST_DTYPE_MAP(X)
#undef X
};

struct shard {
    char *path; /* owned */
    void *map;  /* owned, or NULL */
    size_t bytes;
    cJSON *header; /* owned; holds the names */
};

struct eng_st {
    struct shard *shards; /* [shard_count], owned */
    size_t shard_count;
    struct eng_st_tensor *tensors; /* [tensor_count], owned, by name */
    size_t tensor_count, tensor_cap;
};

const char *eng_st_dtype_name(enum eng_st_dtype dtype)
{
    CHECK((unsigned)dtype < ENG_ST_DTYPE_COUNT);
    return dtypes[dtype].name;
}

size_t eng_st_count(const struct eng_st *set)
{
    return set->tensor_count;
}

const struct eng_st_tensor *eng_st_at(const struct eng_st *set, size_t idx)
{
    CHECK(idx < set->tensor_count);
    return &set->tensors[idx];
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct eng_st_tensor *)a)->name, ((const struct eng_st_tensor *)b)->name);
}

static int by_offset(const void *a, const void *b)
{
    const struct eng_st_tensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

const struct eng_st_tensor *eng_st_find(const struct eng_st *set, const char *name)
{
    struct eng_st_tensor key = {.name = name};
    if (set->tensor_count == 0) return NULL;
    return bsearch(&key, set->tensors, set->tensor_count, sizeof key, by_name);
}

void eng_st_done(const struct eng_st_tensor *tensor)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = round_up((uintptr_t)tensor->data, page);
    uintptr_t end = ((uintptr_t)tensor->data + tensor->bytes) / page * page;
    /* Advice only: a failure costs memory, not correctness. */
    if (begin < end && madvise((void *)begin, end - begin, MADV_DONTNEED)) return;
}

/* --- one tensor of a header --------------------------------------------------------------------
 */

/* A JSON number that is a whole number in [0, 2^53]. */
static bool exact_u64(const cJSON *item, uint64_t *out)
{
    if (!cJSON_IsNumber(item)) return false;
    double v = item->valuedouble;
    if (!(v >= 0 && v <= EXACT_MAX) || v != floor(v)) return false;
    *out = (uint64_t)v;
    return true;
}

static enum status parse_dtype(struct eng_st_tensor *t, const cJSON *item, char *err)
{
    if (!cJSON_IsString(item))
        return err_set(err, ST_CORRUPT, "%s: tensor '%.200s' has no dtype", t->file, t->name);
    for (size_t i = 0; i < ARRAY_COUNT(dtypes); i++)
        if (!strcmp(item->valuestring, dtypes[i].name)) {
            t->dtype = (enum eng_st_dtype)i;
            return ST_OK;
        }
    return err_set(err, ST_UNSUPPORTED, "%s: tensor '%.150s' has the unknown dtype '%.50s'",
                   t->file, t->name, item->valuestring);
}

/* Reads the shape and gives the bytes it asks for. */
static enum status parse_shape(struct eng_st_tensor *t, const cJSON *item, uint64_t *bytes,
                               char *err)
{
    uint64_t n = dtypes[t->dtype].bits / 8;
    bool zero = false;
    if (!cJSON_IsArray(item))
        return err_set(err, ST_CORRUPT, "%s: tensor '%.200s' has no shape", t->file, t->name);
    for (const cJSON *dim = item->child; dim; dim = dim->next) {
        uint64_t d;
        if (t->rank == ENG_ST_RANK_MAX)
            return err_set(err, ST_CORRUPT, "%s: tensor '%.200s' has more than %d dimensions",
                           t->file, t->name, ENG_ST_RANK_MAX);
        if (!exact_u64(dim, &d))
            return err_set(err, ST_CORRUPT,
                           "%s: tensor '%.200s' has a dimension that is not a whole number",
                           t->file, t->name);
        t->dims[t->rank++] = d;
        if (d == 0) zero = true;
        else if (__builtin_mul_overflow(n, d, &n))
            return err_set(err, ST_CORRUPT,
                           "%s: the dimensions of tensor '%.200s' multiply to an absurd size",
                           t->file, t->name);
    }
    *bytes = zero ? 0 : n;
    return ST_OK;
}

static enum status parse_offsets(struct eng_st_tensor *t, const cJSON *item, uint64_t begin_max,
                                 uint64_t *begin, uint64_t *end, char *err)
{
    if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) != 2 ||
        !exact_u64(cJSON_GetArrayItem(item, 0), begin) ||
        !exact_u64(cJSON_GetArrayItem(item, 1), end))
        return err_set(err, ST_CORRUPT,
                       "%s: the data_offsets of tensor '%.200s' are not two whole numbers", t->file,
                       t->name);
    if (*begin > *end || *end > begin_max)
        return err_set(err, ST_CORRUPT,
                       "%s: the data_offsets [%llu, %llu] of tensor '%.150s' do not lie in the "
                       "file's %llu data bytes; was it downloaded whole?",
                       t->file, (unsigned long long)*begin, (unsigned long long)*end, t->name,
                       (unsigned long long)begin_max);
    return ST_OK;
}

static enum status parse_tensor(struct eng_st_tensor *t, const cJSON *entry, const uint8_t *data,
                                uint64_t data_bytes, char *err)
{
    uint64_t begin = 0, end = 0, bytes = 0;
    enum status st;
    if (!cJSON_IsObject(entry))
        return err_set(err, ST_CORRUPT, "%s: the entry of tensor '%.200s' is not an object",
                       t->file, t->name);
    for (const cJSON *item = entry->child; item; item = item->next)
        if (strcmp(item->string, "dtype") && strcmp(item->string, "shape") &&
            strcmp(item->string, "data_offsets"))
            return err_set(err, ST_CORRUPT, "%s: tensor '%.150s' has the unknown field '%.50s'",
                           t->file, t->name, item->string);
    if ((st = parse_dtype(t, json_member(entry, "dtype"), err)) ||
        (st = parse_shape(t, json_member(entry, "shape"), &bytes, err)) ||
        (st = parse_offsets(t, json_member(entry, "data_offsets"), data_bytes, &begin, &end, err)))
        return st;
    if (end - begin != bytes)
        return err_set(err, ST_CORRUPT,
                       "%s: tensor '%.150s' has %llu bytes, but its shape and dtype make %llu",
                       t->file, t->name, (unsigned long long)(end - begin),
                       (unsigned long long)bytes);
    t->data = data + begin;
    t->bytes = bytes;
    return ST_OK;
}

/* --- one file ----------------------------------------------------------------------------------
 */

static enum status map_file(struct shard *s, char *err)
{
    struct stat info;
    enum status st = ST_OK;
    int fd = open(s->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set(err, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: %s", s->path,
                       strerror(errno));
    if (fstat(fd, &info) < 0) {
        st = err_set(err, ST_IO, "%s: %s", s->path, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        st = err_set(err, ST_INVALID, "%s is not a regular file", s->path);
    } else if (info.st_size < 8) {
        st = err_set(err, ST_CORRUPT, "%s has %lld bytes: too short for a safetensors file",
                     s->path, (long long)info.st_size);
    } else {
        s->bytes = (size_t)info.st_size;
        s->map = mmap(NULL, s->bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (s->map == MAP_FAILED) {
            s->map = NULL;
            st = err_set(err, ST_IO, "%s: cannot be mapped: %s", s->path, strerror(errno));
        }
    }
    close(fd);
    return st;
}

static enum status parse_header(struct shard *s, uint64_t *header_bytes, char *err)
{
    const uint8_t *p = s->map;
    char why[ERR_CAP];
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | p[i];
    if (n > HEADER_BYTES_MAX)
        return err_set(err, ST_CORRUPT,
                       "%s: its header claims %llu bytes, more than the format's %u; this is not a "
                       "safetensors file",
                       s->path, (unsigned long long)n, HEADER_BYTES_MAX);
    if (n > s->bytes - 8)
        return err_set(err, ST_CORRUPT,
                       "%s: its header claims %llu bytes, but the file has %zu; was it downloaded "
                       "whole?",
                       s->path, (unsigned long long)n, s->bytes);
    if (n == 0 || p[8] != '{')
        return err_set(err, ST_CORRUPT, "%s: its header does not begin with '{'", s->path);
    enum status st = json_parse((const char *)p + 8, n, &header_limits, &s->header, why);
    if (st)
        return err_set(err, st == ST_INVALID ? ST_CORRUPT : st, "%s: header: %.300s", s->path, why);
    *header_bytes = n;
    return ST_OK;
}

static enum status check_metadata(const struct shard *s, const cJSON *metadata, char *err)
{
    if (!cJSON_IsObject(metadata))
        return err_set(err, ST_CORRUPT, "%s: __metadata__ is not an object", s->path);
    for (const cJSON *item = metadata->child; item; item = item->next)
        if (!cJSON_IsString(item))
            return err_set(err, ST_CORRUPT, "%s: '%.200s' in __metadata__ is not a string", s->path,
                           item->string);
    return ST_OK;
}

/* The tensors of one file must cover its data bytes exactly once. */
static enum status check_layout(const struct shard *s, struct eng_st_tensor *tensors, size_t count,
                                const uint8_t *data, uint64_t data_bytes, char *err)
{
    const uint8_t *expected = data;
    if (count > 1) qsort(tensors, count, sizeof tensors[0], by_offset);
    for (size_t i = 0; i < count; i++) {
        const struct eng_st_tensor *t = &tensors[i];
        if (t->data < expected)
            return err_set(err, ST_CORRUPT, "%s: tensors '%.150s' and '%.150s' overlap", s->path,
                           tensors[i - 1].name, t->name);
        if (t->data > expected)
            return err_set(err, ST_CORRUPT, "%s: %llu bytes before tensor '%.200s' belong to none",
                           s->path, (unsigned long long)(t->data - expected), t->name);
        expected += t->bytes;
    }
    uint64_t left = data_bytes - (uint64_t)(expected - data);
    if (left)
        return err_set(err, ST_CORRUPT, "%s: the last %llu bytes belong to no tensor", s->path,
                       (unsigned long long)left);
    return ST_OK;
}

static enum status grow_tensors(struct eng_st *set, size_t more, char *err)
{
    size_t need = set->tensor_count + more;
    if (need <= set->tensor_cap) return ST_OK;
    struct eng_st_tensor *tensors = realloc(set->tensors, need * sizeof tensors[0]);
    if (!tensors) return err_set(err, ST_NOMEM, "no memory for a table of %zu tensors", need);
    set->tensors = tensors;
    set->tensor_cap = need;
    return ST_OK;
}

/* Maps shard s and appends its tensors to the set. */
static enum status read_shard(struct eng_st *set, struct shard *s, char *err)
{
    enum status st;
    uint64_t header_bytes;
    if ((st = map_file(s, err)) || (st = parse_header(s, &header_bytes, err))) return st;
    const uint8_t *data = (const uint8_t *)s->map + 8 + header_bytes;
    uint64_t data_bytes = s->bytes - 8 - header_bytes;
    if (!cJSON_IsObject(s->header))
        return err_set(err, ST_CORRUPT, "%s: its header is not an object", s->path);
    if ((st = grow_tensors(set, (size_t)cJSON_GetArraySize(s->header), err))) return st;
    size_t first = set->tensor_count;
    for (const cJSON *entry = s->header->child; entry; entry = entry->next) {
        if (!strcmp(entry->string, "__metadata__")) {
            if ((st = check_metadata(s, entry, err))) return st;
            continue;
        }
        struct eng_st_tensor *t = &set->tensors[set->tensor_count];
        *t = (struct eng_st_tensor){.name = entry->string, .file = s->path};
        if ((st = parse_tensor(t, entry, data, data_bytes, err))) return st;
        set->tensor_count++;
    }
    if (set->tensor_count == first && data_bytes == 0) return ST_OK;
    return check_layout(s, set->tensors + first, set->tensor_count - first, data, data_bytes, err);
}

/* --- the checkpoint ----------------------------------------------------------------------------
 */

static enum status sort_tensors(struct eng_st *set, char *err)
{
    if (set->tensor_count == 0)
        return err_set(err, ST_CORRUPT, "%s holds no tensor", set->shards[0].path);
    qsort(set->tensors, set->tensor_count, sizeof set->tensors[0], by_name);
    for (size_t i = 1; i < set->tensor_count; i++) {
        const struct eng_st_tensor *a = &set->tensors[i - 1], *b = &set->tensors[i];
        if (!strcmp(a->name, b->name))
            return err_set(err, ST_CORRUPT, "tensor '%.100s' is in %.150s and again in %.150s",
                           a->name, a->file, b->file);
    }
    return ST_OK;
}

static enum status add_shard(struct eng_st *set, const char *path, char *err)
{
    struct shard *s = &set->shards[set->shard_count];
    *s = (struct shard){.path = strdup(path)};
    if (!s->path) return err_set(err, ST_NOMEM, "no memory for the path of a shard");
    set->shard_count++;
    return read_shard(set, s, err);
}

static enum status new_set(size_t shards, struct eng_st **out, char *err)
{
    struct eng_st *set = calloc(1, sizeof *set);
    if (set) set->shards = calloc(shards, sizeof set->shards[0]);
    if (!set || !set->shards) {
        free(set);
        return err_set(err, ST_NOMEM, "no memory for a table of %zu files", shards);
    }
    *out = set;
    return ST_OK;
}

enum status eng_st_open_file(const char *path, struct eng_st **out, char *err)
{
    struct eng_st *set;
    *out = NULL;
    enum status st = new_set(1, &set, err);
    if (st) return st;
    if ((st = add_shard(set, path, err)) || (st = sort_tensors(set, err))) {
        eng_st_close(set);
        return st;
    }
    *out = set;
    return ST_OK;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A shard lies in the model's directory: a name with a slash could name any file of the machine. */
static bool shard_name_ok(const char *name)
{
    return *name && !strchr(name, '/') && strcmp(name, ".") && strcmp(name, "..");
}

/* Collects the distinct file names of the index; *names is owned by the caller, its strings by map.
 */
static enum status shard_names(const char *index, const cJSON *map, const char ***names,
                               size_t *count, char *err)
{
    size_t total = (size_t)cJSON_GetArraySize(map), distinct = 0, i = 0;
    const char **list = malloc((total ? total : 1) * sizeof list[0]);
    if (!list) return err_set(err, ST_NOMEM, "%s: no memory for its %zu names", index, total);
    for (const cJSON *item = map->child; item; item = item->next) {
        if (!cJSON_IsString(item) || !shard_name_ok(item->valuestring)) {
            free(list);
            return err_set(err, ST_CORRUPT,
                           "%s: weight_map gives no plain file name for tensor '%.200s'", index,
                           item->string);
        }
        list[i++] = item->valuestring;
    }
    qsort(list, total, sizeof list[0], by_text);
    for (i = 0; i < total; i++)
        if (distinct == 0 || strcmp(list[distinct - 1], list[i])) list[distinct++] = list[i];
    if (distinct == 0 || distinct > SHARD_MAX) {
        free(list);
        return err_set(err, ST_CORRUPT, "%s: weight_map names %zu files; 1 to %d are accepted",
                       index, distinct, SHARD_MAX);
    }
    *names = list;
    *count = distinct;
    return ST_OK;
}

/* Every tensor of the index must lie in the shard the index names. */
static enum status check_index(const struct eng_st *set, const char *index, const cJSON *map,
                               char *err)
{
    for (const cJSON *item = map->child; item; item = item->next) {
        const struct eng_st_tensor *t = eng_st_find(set, item->string);
        const char *slash = t ? strrchr(t->file, '/') : NULL;
        if (!t || strcmp(slash ? slash + 1 : t->file, item->valuestring))
            return err_set(err, ST_CORRUPT, "%s says that tensor '%.120s' is in %.120s; it is not",
                           index, item->string, item->valuestring);
    }
    return ST_OK;
}

static enum status open_shards(const char *dir, const char *index, const cJSON *map,
                               struct eng_st *set, const char *const *names, size_t count,
                               char *err)
{
    char path[PATH_CAP];
    enum status st;
    for (size_t i = 0; i < count; i++)
        if ((st = file_join(path, sizeof path, dir, names[i], err)) ||
            (st = add_shard(set, path, err)))
            return st;
    if ((st = sort_tensors(set, err))) return st;
    return check_index(set, index, map, err);
}

static enum status open_index(const char *dir, const char *index, struct eng_st **out, char *err)
{
    cJSON *root;
    const char **names = NULL;
    size_t count = 0;
    struct eng_st *set = NULL;
    enum status st = json_parse_file(index, &json_limits_file, &root, err);
    if (st) return st;
    const cJSON *map = json_member(root, "weight_map");
    if (!cJSON_IsObject(map)) {
        st = err_set(err, ST_CORRUPT, "%s has no weight_map object", index);
        goto fail_root;
    }
    if ((st = shard_names(index, map, &names, &count, err))) goto fail_root;
    if ((st = new_set(count, &set, err))) goto fail_names;
    st = open_shards(dir, index, map, set, names, count, err);
    if (st) eng_st_close(set);
    else *out = set;
fail_names:
    free(names);
fail_root:
    cJSON_Delete(root);
    return st;
}

enum status eng_st_open(const char *dir, struct eng_st **out, char *err)
{
    char single[PATH_CAP], index[PATH_CAP];
    enum status st;
    *out = NULL;
    if ((st = file_join(single, sizeof single, dir, "model.safetensors", err)) ||
        (st = file_join(index, sizeof index, dir, "model.safetensors.index.json", err)))
        return st;
    if (file_exists(single)) return eng_st_open_file(single, out, err);
    if (file_exists(index)) return open_index(dir, index, out, err);
    return err_set(
        err, ST_NOT_FOUND,
        "%s holds neither model.safetensors nor model.safetensors.index.json; dakd reads "
        "safetensors checkpoints only",
        dir);
}

void eng_st_close(struct eng_st *set)
{
    if (!set) return;
    for (size_t i = 0; i < set->shard_count; i++) {
        struct shard *s = &set->shards[i];
        cJSON_Delete(s->header);
        if (s->map) munmap(s->map, s->bytes);
        free(s->path);
    }
    free(set->shards);
    free(set->tensors);
    free(set);
}
