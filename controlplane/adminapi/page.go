package adminapi

import (
	"encoding/base64"
	"encoding/binary"
	"hash/fnv"
	"strconv"
	"strings"

	"github.com/prism-gateway/prism/shared/fault"
)

const (
	defaultPage = 100
	maxPage     = 1000
	maxAnswer   = 2 << 20 // bytes after which an answer tells less; a client takes 4 MiB
)

func pageSize(asked uint32) int {
	if asked == 0 {
		return defaultPage
	}
	return min(int(asked), maxPage)
}

// pageToken names the last entry of a page, so that what comes or goes meanwhile moves nothing. It is bound to its list
// and filters.
func pageToken(last string, query ...string) string {
	data := binary.BigEndian.AppendUint64(nil, queryHash(query))
	return base64.RawURLEncoding.EncodeToString(append(data, last...))
}

// pageAfter returns the entry that the page before ended with; empty at the beginning.
func pageAfter(token string, query ...string) (string, error) {
	if token == "" {
		return "", nil
	}
	data, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(data) <= 8 || binary.BigEndian.Uint64(data) != queryHash(query) {
		return "", fault.New(fault.Invalid, fault.PageToken, "this page token is not from this list with these filters; begin again without one")
	}
	return string(data[8:]), nil
}

func queryHash(query []string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(strings.Join(query, "\x00"))) // never fails
	return h.Sum64()
}

// versionToken is pageToken where a number names the last entry.
func versionToken(last uint64, query ...string) string {
	return pageToken(strconv.FormatUint(last, 10), query...)
}

// versionAfter returns the version that the page before ended with; 0 at the beginning.
func versionAfter(token string, query ...string) (uint64, error) {
	after, err := pageAfter(token, query...)
	if err != nil || after == "" {
		return 0, err
	}
	v, err := strconv.ParseUint(after, 10, 64)
	if err != nil {
		return 0, badToken()
	}
	return v, nil
}

func badToken() error {
	return fault.New(fault.Invalid, fault.PageToken, "this page token is not one of ours; begin again without one")
}
