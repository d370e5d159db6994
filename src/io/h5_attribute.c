/* The second half of h5.h: attributes of HDF5 objects, and the heaps in which texts of variable length lie. */
#define _GNU_SOURCE /* memmem */

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "io/file.h"
#include "io/h5.h"

enum {
    MOST_BYTES = 1 << 28
}; /* of one attribute; a larger one is taken for damage */

bool h5_has(hid_t object, const char *name)
{
    bool has = H5Aexists(object, name) > 0;
    H5Eclear2(H5E_DEFAULT);
    return has;
}

/* Opens an attribute of a class; its type and how many elements it has. */
static hid_t open_attribute(hid_t object, const char *name, H5T_class_t class, const char *class_name, hid_t *type,
                            int64_t *count, struct err *err)
{
    if (!h5_has(object, name))
        return err_set(err, "attribute '%s' is missing", name);
    hid_t attribute = H5Aopen(object, name, H5P_DEFAULT);
    hid_t space = attribute < 0 ? -1 : H5Aget_space(attribute);
    *type = attribute < 0 ? -1 : H5Aget_type(attribute);
    *count = space < 0 ? -1 : H5Sget_simple_extent_npoints(space);
    int result = 0;
    if (space < 0 || *type < 0 || *count < 0)
        result = h5_error(err, "attribute '%s' cannot be opened", name);
    else if (H5Tget_class(*type) != class)
        result = err_set(err, "attribute '%s' is not %s", name, class_name);
    else if (*count > MOST_BYTES / 8)
        result = err_set(err, "attribute '%s' claims %lld elements", name, (long long)*count);
    if (space >= 0)
        H5Sclose(space);
    if (result == 0)
        return attribute;
    if (*type >= 0)
        H5Tclose(*type);
    if (attribute >= 0)
        H5Aclose(attribute);
    return -1;
}

static int get_integer(hid_t object, const char *name, hid_t as, void *value, struct err *err)
{
    hid_t type;
    int64_t count;
    hid_t attribute = open_attribute(object, name, H5T_INTEGER, "an integer", &type, &count, err);
    if (attribute < 0)
        return -1;
    int result = 0;
    if (count != 1)
        result = err_set(err, "attribute '%s' has %lld values, not one", name, (long long)count);
    else if (H5Aread(attribute, as, value) < 0)
        result = h5_error(err, "attribute '%s' cannot be read", name);
    H5Tclose(type);
    H5Aclose(attribute);
    return result;
}

int h5_get_int64(hid_t object, const char *name, int64_t *value, struct err *err)
{
    return get_integer(object, name, H5T_NATIVE_INT64, value, err);
}

int h5_get_uint64(hid_t object, const char *name, uint64_t *value, struct err *err)
{
    return get_integer(object, name, H5T_NATIVE_UINT64, value, err);
}

int h5_get_doubles(hid_t object, const char *name, double **values, int64_t *count, struct err *err)
{
    hid_t type;
    hid_t attribute = open_attribute(object, name, H5T_FLOAT, "floating-point numbers", &type, count, err);
    if (attribute < 0)
        return -1;
    *values = allocate((size_t)*count, sizeof **values);
    int result = 0;
    if (*count > 0 && H5Aread(attribute, H5T_NATIVE_DOUBLE, *values) < 0) {
        result = h5_error(err, "attribute '%s' cannot be read", name);
        free(*values);
        *values = NULL;
    }
    H5Tclose(type);
    H5Aclose(attribute);
    return result;
}

static int read_variable(hid_t attribute, hid_t type, char **text)
{
    char *string = NULL;
    if (H5Aread(attribute, type, &string) < 0)
        return -1;
    *text = copy_text(string ? string : "");
    if (string)
        H5free_memory(string);
    return 0;
}

static int read_fixed(hid_t attribute, hid_t type, char **text)
{
    size_t bytes = H5Tget_size(type);
    if (bytes > MOST_BYTES)
        return -1;
    *text = allocate(bytes + 1, 1); /* closed by a zero whatever the padding */
    if (H5Aread(attribute, type, *text) < 0) {
        free(*text);
        *text = NULL;
        return -1;
    }
    if (H5Tget_strpad(type) == H5T_STR_SPACEPAD)
        while (bytes > 0 && (*text)[bytes - 1] == ' ')
            (*text)[--bytes] = '\0';
    return 0;
}

int h5_get_text(hid_t object, const char *name, char **text, struct err *err)
{
    hid_t type;
    int64_t count;
    hid_t attribute = open_attribute(object, name, H5T_STRING, "a string", &type, &count, err);
    if (attribute < 0)
        return -1;
    *text = NULL;
    int result = 0;
    if (count != 1)
        result = err_set(err, "attribute '%s' has %lld values, not one", name, (long long)count);
    else if ((H5Tis_variable_str(type) > 0 ? read_variable : read_fixed)(attribute, type, text) < 0)
        result = h5_error(err, "attribute '%s' cannot be read", name);
    H5Tclose(type);
    H5Aclose(attribute);
    return result;
}

/* count < 0: one value without axes */
static int put(hid_t object, const char *name, hid_t type, int64_t count, const void *values, struct err *err)
{
    hsize_t extent = (hsize_t)count;
    hid_t space = count < 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(1, &extent, NULL);
    hid_t attribute = space < 0 ? -1 : H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    int result = 0;
    if (attribute < 0 || (count != 0 && H5Awrite(attribute, type, values) < 0))
        result = h5_error(err, "attribute '%s' cannot be written", name);
    if (attribute >= 0)
        H5Aclose(attribute);
    if (space >= 0)
        H5Sclose(space);
    return result;
}

int h5_put_int64(hid_t object, const char *name, int64_t value, struct err *err)
{
    return put(object, name, H5T_NATIVE_INT64, -1, &value, err);
}

int h5_put_uint64(hid_t object, const char *name, uint64_t value, struct err *err)
{
    return put(object, name, H5T_NATIVE_UINT64, -1, &value, err);
}

int h5_put_doubles(hid_t object, const char *name, const double *values, int64_t count, struct err *err)
{
    return put(object, name, H5T_NATIVE_DOUBLE, count, values, err);
}

int h5_put_text(hid_t object, const char *name, const char *text, struct err *err)
{
    /* variable length: a string for every reader, and without limit (it lies outside the object's header) */
    hid_t type = H5Tcopy(H5T_C_S1);
    if (type < 0 || H5Tset_size(type, H5T_VARIABLE) < 0 || H5Tset_cset(type, H5T_CSET_UTF8) < 0)
        fatal("HDF5 has no memory for a type");
    int result = put(object, name, type, -1, &text, err);
    H5Tclose(type);
    return result;
}

int h5_put_format(hid_t file, const char *format, int64_t version, struct err *err)
{
    return h5_put_text(file, "format", format, err) < 0 ? -1 : h5_put_int64(file, "version", version, err);
}

int h5_check_format(hid_t file, const char *format, int64_t version, struct err *err)
{
    char *found = NULL;
    int64_t found_version;
    if (h5_get_text(file, "format", &found, err) < 0)
        return err_prefix(err, "is not a %s file", format);
    int result = 0;
    if (strcmp(found, format) != 0)
        result = err_set(err, "attribute 'format' is '%.64s', not '%s'", found, format);
    else if (h5_get_int64(file, "version", &found_version, err) < 0)
        result = -1;
    else if (found_version != version)
        result = err_set(err, "is version %lld of %s; this program reads version %lld", (long long)found_version,
                         format, (long long)version);
    free(found);
    return result;
}

/* Where the elements of a file's contiguous datasets lie: [first byte, end). */
struct extents {
    int64_t (*at)[2];
    int count, room;
};

static herr_t note_extent(hid_t file, const char *name, const H5L_info_t *link, void *context)
{
    struct extents *extents = context;
    (void)link;
    hid_t object = H5Oopen(file, name, H5P_DEFAULT);
    if (object < 0)
        return 0; /* a link that leads nowhere */
    haddr_t offset = H5Iget_type(object) == H5I_DATASET ? H5Dget_offset(object) : HADDR_UNDEF;
    if (offset != HADDR_UNDEF) {
        if (extents->count == extents->room) {
            int64_t(*more)[2] = allocate((size_t)(extents->room = 2 * extents->room + 64), sizeof *more);
            if (extents->count > 0)
                memcpy(more, extents->at, (size_t)extents->count * sizeof *more);
            free(extents->at);
            extents->at = more;
        }
        int64_t *extent = extents->at[extents->count++];
        extent[0] = (int64_t)offset;
        extent[1] = (int64_t)(offset + H5Dget_storage_size(object));
    }
    H5Oclose(object);
    return 0;
}

static int by_place(const void *a, const void *b)
{
    int64_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

static uint64_t little_endian(const unsigned char *bytes, int count)
{
    uint64_t value = 0;
    while (count-- > 0)
        value = value << 8 | bytes[count];
    return value;
}

/* Whether the objects of a heap fill it exactly (HDF5 File Format Specification 3.0, section III.E): each has a header
 * of 16 bytes with its number and length; the rest is object 0, whose length counts its header too. */
static bool heap_is_whole(const unsigned char *heap, uint64_t room)
{
    enum {
        HEADER = 16
    };
    uint64_t size = room < HEADER ? 0 : little_endian(heap + 8, 8);
    if (size < HEADER || size > room)
        return false;
    for (uint64_t at = HEADER; size - at >= HEADER;) {
        uint64_t left = size - at, number = little_endian(heap + at, 2), length = little_endian(heap + at + 8, 8);
        if (number == 0)
            return length == left;
        if (length == 0 || length > left - HEADER)
            return false;
        length = (length + 7) / 8 * 8;
        if (length > left - HEADER)
            return false;
        at += HEADER + length;
    }
    return true;
}

/* Looks for heaps among the bytes from ... to - 1 of the file. */
static int check_gap(struct file *raw, int64_t from, int64_t to, struct err *err)
{
    static const unsigned char signature[8] = "GCOL\1";
    if (to - from < (int64_t)sizeof signature || to - from > MOST_BYTES)
        return 0;
    unsigned char *bytes = allocate((size_t)(to - from), 1), *end = bytes + (to - from);
    int result = file_read(raw, from, bytes, to - from, err);
    for (unsigned char *heap = bytes; result == 0;) {
        heap = memmem(heap, (size_t)(end - heap), signature, sizeof signature);
        if (!heap)
            break;
        if (!heap_is_whole(heap, (uint64_t)(end - heap)))
            result = err_set(err, "is damaged: the lengths of its texts do not fit together");
        heap += sizeof signature;
    }
    free(bytes);
    return result;
}

int h5_check_heaps(hid_t file, const char *path, struct err *err)
{
    struct extents extents = {0};
    hsize_t size;
    if (H5Lvisit(file, H5_INDEX_NAME, H5_ITER_NATIVE, note_extent, &extents) < 0 || H5Fget_filesize(file, &size) < 0) {
        free(extents.at);
        return h5_error(err, "its groups cannot be listed");
    }
    H5Eclear2(H5E_DEFAULT);
    if (extents.count > 0)
        qsort(extents.at, (size_t)extents.count, sizeof *extents.at, by_place);
    struct file *raw = file_open(path, false, err);
    int result = raw ? 0 : -1;
    int64_t from = 0;
    for (int i = 0; i < extents.count && result == 0; i++) {
        result = check_gap(raw, from, extents.at[i][0], err);
        from = extents.at[i][1] > from ? extents.at[i][1] : from;
    }
    if (result == 0)
        result = check_gap(raw, from, (int64_t)size, err);
    file_close(raw);
    free(extents.at);
    return result;
}
