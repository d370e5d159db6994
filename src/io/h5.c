#include "io/h5.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "io/file.h"
#include "parallel/agree.h"

/* Every way into HDF5 passes here first: its messages come to us alone. */
static void quiet(void)
{
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

/* The innermost message; below that of a filter that is missing lies the fruitless search for it in some folder. */
static herr_t innermost(unsigned n, const H5E_error2_t *record, void *reason)
{
    char *text = reason;
    (void)n;
    if (!text[0] && record->desc && record->maj_num != H5E_PLUGIN)
        snprintf(text, 512, "%s", record->desc);
    return 0;
}

/* HDF5 gives failed system calls with all their arguments: "file write failed: time = ..., error message = 'No space
 * left on device', buf = ...". What failed and the system's words are kept, on one line. */
static void shorten(char *reason)
{
    static const char before[] = "error message = '";
    for (char *c = reason; (c = strpbrk(c, "\r\n\t"));)
        *c = ' ';
    char *words = strstr(reason, before), *colon = strpbrk(reason, ":,");
    if (!words || !colon || colon > words)
        return;
    words += sizeof before - 1;
    size_t length = strcspn(words, "'");
    colon[1] = ' ';
    memmove(colon + 2, words, length);
    colon[2 + length] = '\0';
}

int h5_error(struct err *err, const char *format, ...)
{
    char reason[512] = "";
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, innermost, reason);
    H5Eclear2(H5E_DEFAULT);
    shorten(reason);
    va_list list;
    va_start(list, format);
    int used = vsnprintf(err->text, sizeof err->text, format, list);
    va_end(list);
    if (reason[0] && used >= 0 && (size_t)used < sizeof err->text)
        snprintf(err->text + used, sizeof err->text - (size_t)used, " (HDF5: %s)", reason);
    return -1;
}

/* File access for one rank. Locks would be refused by some parallel file systems. */
static hid_t access_alone(void)
{
    quiet();
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    if (access < 0 || H5Pset_file_locking(access, false, true) < 0)
        fatal("HDF5 has no memory for a property list");
    return access;
}

hid_t h5_open(const char *path, struct err *err)
{
    hid_t access = access_alone();
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, access);
    if (file < 0)
        h5_error(err, "%s: cannot be opened as an HDF5 file", path);
    H5Pclose(access);
    if (file < 0 || h5_check_heaps(file, path, err) == 0)
        return file;
    H5Fclose(file);
    return err_prefix(err, "%s", path);
}

hid_t h5_create(struct err *err)
{
    char *path = file_in_memory(err);
    if (!path)
        return -1;
    hid_t access = access_alone(), creation = H5Pcreate(H5P_FILE_CREATE), file = -1;
    /* from 1.8 on: headers with checksums, and attributes of any size. Large datasets begin on pages of their own. */
    if (creation >= 0 && H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_V18) >= 0 &&
        H5Pset_alignment(access, 65536, 4096) >= 0 && H5Pset_obj_track_times(creation, false) >= 0)
        file = H5Fcreate(path, H5F_ACC_TRUNC, creation, access);
    if (file < 0)
        h5_error(err, "an HDF5 file cannot be begun");
    H5Pclose(access);
    H5Pclose(creation);
    unlink(path);
    free(path);
    return file;
}

int h5_save(hid_t file, const char *path, struct err *err)
{
    void *descriptor;
    int result;
    if (H5Fflush(file, H5F_SCOPE_LOCAL) < 0 || H5Fget_vfd_handle(file, H5P_DEFAULT, &descriptor) < 0)
        result = h5_error(err, "%s: cannot be composed", path);
    else
        result = file_save(*(int *)descriptor, path, err);
    H5Fclose(file);
    return result;
}

hid_t h5_open_together(struct communicator *comm, const char *path, struct err *err)
{
    hid_t access = access_alone();
    hid_t file = -1;
    if (H5Pset_fapl_mpio(access, comm->mpi, MPI_INFO_NULL) >= 0)
        file = H5Fopen(path, H5F_ACC_RDONLY, access);
    int result = file < 0 ? h5_error(err, "%s: cannot be opened with MPI-IO", path) : 0;
    H5Pclose(access);
    if (agree(comm, result, err) < 0) {
        if (file >= 0) /* it could only be closed by all */
            fatal("%s: opened on this rank but not on another: %s", path, err->text);
        return -1;
    }
    return file;
}

bool h5_exists(hid_t file, const char *path)
{
    char *part = copy_text(path);
    bool there = true;
    for (size_t i = 1, length = strlen(path); i <= length && there; i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        part[i] = '\0';
        there = H5Lexists(file, part, H5P_DEFAULT) > 0;
        part[i] = path[i];
    }
    H5Eclear2(H5E_DEFAULT);
    free(part);
    return there;
}

/* Creates the groups on the path to an object where they are missing, without times. */
static int create_groups(hid_t file, const char *path, struct err *err)
{
    char *part = copy_text(path);
    hid_t creation = H5Pcreate(H5P_GROUP_CREATE);
    bool failed = creation < 0 || H5Pset_obj_track_times(creation, false) < 0;
    for (char *slash = strchr(part + 1, '/'); slash && !failed; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (H5Lexists(file, part, H5P_DEFAULT) == 0) {
            hid_t group = H5Gcreate2(file, part, H5P_DEFAULT, creation, H5P_DEFAULT);
            failed = group < 0 || H5Gclose(group) < 0;
        }
        *slash = '/';
    }
    int result = failed ? h5_error(err, "the groups of %s cannot be created", path) : 0;
    H5Pclose(creation);
    free(part);
    return result;
}

hid_t h5_create_dataset(hid_t file, const char *path, hid_t type, int axes, const int64_t *shape, struct err *err)
{
    if (create_groups(file, path, err) < 0)
        return -1;
    hsize_t dims[H5S_MAX_RANK];
    for (int a = 0; a < axes; a++)
        dims[a] = (hsize_t)shape[a];
    hid_t creation = H5Pcreate(H5P_DATASET_CREATE), space = H5Screate_simple(axes, dims, NULL), dataset = -1;
    if (creation >= 0 && space >= 0 && H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY) >= 0 &&
        H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER) >= 0 && H5Pset_obj_track_times(creation, false) >= 0)
        dataset = H5Dcreate2(file, path, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
    if (dataset < 0)
        h5_error(err, "dataset %s cannot be created", path);
    if (space >= 0)
        H5Sclose(space);
    H5Pclose(creation);
    return dataset;
}

/* Whether a contiguous dataset's bytes lie within the file; others are checked as they are read. */
static bool lies_within_file(hid_t dataset)
{
    haddr_t offset = H5Dget_offset(dataset);
    hsize_t stored = H5Dget_storage_size(dataset), size = 0;
    hid_t file = H5Iget_file_id(dataset);
    bool known = file >= 0 && H5Fget_filesize(file, &size) >= 0;
    H5Fclose(file);
    H5Eclear2(H5E_DEFAULT);
    return offset == HADDR_UNDEF || (known && offset <= size && stored <= size - offset);
}

int h5_shape(hid_t dataset, int64_t *shape, struct err *err)
{
    hsize_t dims[H5S_MAX_RANK];
    hid_t space = H5Dget_space(dataset);
    H5S_class_t kind = space < 0 ? H5S_NO_CLASS : H5Sget_simple_extent_type(space);
    int axes = kind == H5S_SCALAR ? 0 : kind == H5S_SIMPLE ? H5Sget_simple_extent_dims(space, dims, NULL) : -1;
    if (space >= 0)
        H5Sclose(space);
    if (axes < 0)
        return h5_error(err, "has no shape");
    double elements = 1;
    for (int a = 0; a < axes; a++) {
        shape[a] = (int64_t)dims[a];
        elements *= (double)dims[a];
    }
    if (elements > 0x1p60)
        return err_set(err, "claims %g elements", elements);
    if (!lies_within_file(dataset))
        return err_set(err, "reaches beyond the end of the file");
    return axes;
}

H5T_class_t h5_class(hid_t dataset)
{
    hid_t type = H5Dget_type(dataset);
    H5T_class_t class = type < 0 ? H5T_NO_CLASS : H5Tget_class(type);
    H5Tclose(type);
    return class;
}

int64_t h5_offset(hid_t dataset, hid_t type)
{
    haddr_t offset = H5Dget_offset(dataset); /* undefined for other layouts than contiguous */
    hid_t stored = H5Dget_type(dataset);
    bool alike = stored >= 0 && H5Tequal(stored, type) > 0;
    H5Tclose(stored);
    H5Eclear2(H5E_DEFAULT);
    return alike && offset != HADDR_UNDEF ? (int64_t)offset : -1;
}

/* `to` or `from` is the memory; the other is NULL. */
static int transfer(hid_t dataset, hid_t type, const struct box *box, void *to, const void *from, int64_t stride,
                    struct err *err)
{
    hid_t file = H5S_ALL, memory = H5S_ALL;
    if (box->axes > 0) {
        hsize_t start[H5S_MAX_RANK], count[H5S_MAX_RANK], row = 1;
        for (int a = 0; a < box->axes; a++) {
            start[a] = (hsize_t)box->start[a];
            count[a] = (hsize_t)box->count[a];
            row *= a > 0 ? count[a] : 1;
        }
        hsize_t rows = count[0], step = (hsize_t)stride, zero = 0;
        if (rows == 0 || row == 0)
            return 0;
        if (rows == 1 || step == row) { /* one piece */
            row *= rows;
            step = row;
            rows = 1;
        }
        hsize_t extent = (rows - 1) * step + row;
        file = H5Dget_space(dataset);
        memory = H5Screate_simple(1, &extent, NULL);
        if (file < 0 || memory < 0 || H5Sselect_hyperslab(file, H5S_SELECT_SET, start, NULL, count, NULL) < 0 ||
            H5Sselect_hyperslab(memory, H5S_SELECT_SET, &zero, &step, &rows, &row) < 0)
            fatal("HDF5 refuses the selection of a box");
    }
    int result = 0;
    if (to && H5Dread(dataset, type, memory, file, H5P_DEFAULT, to) < 0)
        result = h5_error(err, "cannot be read");
    if (from && H5Dwrite(dataset, type, memory, file, H5P_DEFAULT, from) < 0)
        result = h5_error(err, "cannot be written");
    if (box->axes > 0) {
        H5Sclose(memory);
        H5Sclose(file);
    }
    return result;
}

int h5_read_box(hid_t dataset, hid_t type, const struct box *box, void *data, int64_t stride, struct err *err)
{
    return transfer(dataset, type, box, data, NULL, stride, err);
}

int h5_write_box(hid_t dataset, hid_t type, const struct box *box, const void *data, int64_t stride, struct err *err)
{
    return transfer(dataset, type, box, NULL, data, stride, err);
}

struct short_text h5_library(void)
{
    unsigned major = 0, minor = 0, release = 0;
    struct short_text out;
    H5get_libversion(&major, &minor, &release);
    snprintf(out.text, sizeof out.text, "%u.%u.%u (parallel)", major, minor, release);
    return out;
}
