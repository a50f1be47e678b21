/* Files written aside and renamed: all of it, or what was there before; and folders on the way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/file.h"

static char folder[64];

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/dakd-file-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static void path_of(const char *name, char out[256])
{
    assert_true(snprintf(out, 256, "%s/%s", folder, name) < 256);
}

static void assert_holds(const char *path, const char *text)
{
    char *data, err[ERR_CAP], aside[300];
    size_t len;
    if (file_read(path, 1000000, &data, &len, err)) fail_msg("%s", err);
    assert_int_equal(len, strlen(text));
    assert_memory_equal(data, text, len);
    free(data);
    snprintf(aside, sizeof aside, "%s.new", path);
    assert_false(file_exists(aside));
}

static void test_replace(void **state)
{
    (void)state;
    char path[256], err[ERR_CAP] = "";
    static char large[300001];
    path_of("a", path);
    assert_int_equal(file_replace(path, "one", 3, err), ST_OK);
    assert_holds(path, "one");
    memset(large, 'x', sizeof large - 1);
    assert_int_equal(file_replace(path, large, sizeof large - 1, err), ST_OK);
    assert_holds(path, large);
    assert_int_equal(file_replace(path, "", 0, err), ST_OK);
    assert_holds(path, "");
    /* A name without a folder is of the current one. */
    assert_int_equal(chdir(folder), 0);
    assert_int_equal(file_replace("b", "two", 3, err), ST_OK);
    assert_holds("b", "two");
    assert_int_equal(unlink("a") | unlink("b"), 0);
}

static void test_refused(void **state)
{
    (void)state;
    char path[256], other[256], aside[300], err[ERR_CAP] = "", *longest = malloc(5001);
    path_of("missing/a", path);
    assert_int_equal(file_replace(path, "x", 1, err), ST_IO);
    assert_non_null(strstr(err, path));
    assert_non_null(strstr(err, "No such file"));
    assert_int_equal(file_can_replace(path, err), ST_IO);
    /* A folder of that name stays, and nothing beside it. */
    path_of("c", path);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(file_can_replace(path, err), ST_IO);
    assert_int_equal(file_replace(path, "x", 1, err), ST_IO);
    snprintf(aside, sizeof aside, "%s.new", path);
    assert_false(file_exists(aside));
    assert_int_equal(rmdir(path), 0);
    /* Nobody is written to through a link that lies at the name aside. */
    path_of("victim", other);
    assert_int_equal(file_replace(other, "mine", 4, err), ST_OK);
    assert_int_equal(symlink(other, aside), 0);
    assert_int_equal(file_replace(path, "x", 1, err), ST_IO);
    assert_holds(other, "mine");
    assert_int_equal(unlink(aside) | unlink(other), 0);
    assert_non_null(longest);
    memset(longest, 'a', 5000);
    longest[5000] = '\0';
    assert_int_equal(file_replace(longest, "x", 1, err), ST_LIMIT);
    assert_int_equal(file_make_folders(longest, err), ST_LIMIT);
    free(longest);
}

/* A disk that is full half-way: what was there stays. */
static void test_no_room(void **state)
{
    (void)state;
    char path[256], err[ERR_CAP] = "";
    static char large[100001];
    struct rlimit was, small;
    path_of("e", path);
    assert_int_equal(file_replace(path, "old", 3, err), ST_OK);
    memset(large, 'y', sizeof large - 1);
    assert_true(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    small = (struct rlimit){50000, was.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    enum status st = file_replace(path, large, sizeof large - 1, err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    assert_int_equal(st, ST_IO);
    assert_non_null(strstr(err, "File too large"));
    assert_holds(path, "old");
    assert_int_equal(unlink(path), 0);
}

static void test_can_replace(void **state)
{
    (void)state;
    char path[256], err[ERR_CAP] = "";
    path_of("d", path);
    assert_int_equal(file_can_replace(path, err), ST_OK);
    assert_false(file_exists(path));
    assert_int_equal(file_replace(path, "kept", 4, err), ST_OK);
    assert_int_equal(file_can_replace(path, err), ST_OK);
    assert_holds(path, "kept");
    assert_int_equal(unlink(path), 0);
}

static void test_folders(void **state)
{
    (void)state;
    char path[256], file[256], err[ERR_CAP] = "";
    struct stat info;
    path_of("x/y//z/", path);
    assert_int_equal(file_make_folders(path, err), ST_OK);
    assert_int_equal(file_make_folders(path, err), ST_OK);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0700);
    path_of("x/f", file);
    assert_int_equal(file_replace(file, "x", 1, err), ST_OK);
    path_of("x/f/g", path);
    assert_int_equal(file_make_folders(path, err), ST_IO);
    assert_non_null(strstr(err, "Not a directory"));
    assert_int_equal(unlink(file), 0);
    path_of("x/y/z", path);
    assert_int_equal(rmdir(path), 0);
    path_of("x/y", path);
    assert_int_equal(rmdir(path), 0);
    path_of("x", path);
    assert_int_equal(rmdir(path), 0);
}

static int remove_folder(void **state)
{
    (void)state;
    return chdir("/") || rmdir(folder); /* which shows that nothing was left */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replace), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_no_room), cmocka_unit_test(test_can_replace),
        cmocka_unit_test(test_folders),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
