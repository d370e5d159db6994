/* The files of flight records in a run's output folder: flight-<rank>.record, the record as parallel/flight.h lays it
 * out, renewed once a second while the run lives; flight-<rank>.json, the same as text, after a hang. Local. */
#ifndef PARALLEL_FLIGHT_FILES_H
#define PARALLEL_FLIGHT_FILES_H

#include "base/error.h"
#include "base/text.h"
#include "parallel/flight.h"

/* The path of a rank's file; ending "record" or "json". */
struct text flight_path(const char *folder, int rank, const char *ending);

/* Makes the file, at its full length. Its descriptor, or -1 with *err. */
int flight_file_create(const char *folder, const struct flight_record *record, struct err *err);

/* Renews it. What goes wrong here is not told: whoever reads the file sees that it is not renewed. */
void flight_file_write(int descriptor, const struct flight_record *record);

/* A rank's record of this run; false: there is none that can be read. */
bool flight_file_read(const char *folder, int rank, uint64_t run, struct flight_record *record);

/* Removes what a run left in the folder: the files with this ending of the ranks from `first` on. */
void flight_files_remove(const char *folder, const char *ending, int first);

/* The file that whoever reports a hang makes first: true where it was not there. */
bool flight_lock(const char *folder);
void flight_unlock(const char *folder);

/* What is known of a rank when the job hangs. */
struct sighting {
    struct flight_record record;
    bool is_there; /* there is a record */
    bool lives;    /* its heart beats */
};

/* Seconds since the instruction began, and since the last sign of life. `wall`: now, seconds since 1970. */
double sighting_age(const struct sighting *sighting, double begin, double wall);
double sighting_silence(const struct sighting *sighting, double wall);

/* Writes flight-<rank>.json; `standing` and the rank that it waits for (-1: none) as found (parallel/verdict.h). */
void flight_json_write(const char *folder, int rank, const struct sighting *sighting, const char *standing,
                       int waits_for, double wall);

#endif
