package journal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
)

const (
	suffix = ".journal"
	// A record is its length and its checksum, four bytes each, and as many bytes as its length says.
	headerBytes = 8
	// maxRecord bounds a record that is believed.
	maxRecord = 64 << 20
)

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// encode appends a record to buffer.
func encode(buffer []byte, e *recordv1.JournalEntry) ([]byte, error) {
	at := len(buffer)
	buffer = append(buffer, make([]byte, headerBytes)...)
	buffer, err := proto.MarshalOptions{}.MarshalAppend(buffer, e)
	if err != nil {
		return buffer[:at], err
	}
	body := buffer[at+headerBytes:]
	binary.BigEndian.PutUint32(buffer[at:], uint32(len(body)))
	binary.BigEndian.PutUint32(buffer[at+4:], crc32.Checksum(body, castagnoli()))
	return buffer, nil
}

// scan goes through the records of a segment until told is done, and returns how many bytes are whole. What follows
// them is no error: it is a record that was being written when the machine stopped, or is being written.
func scan(path string, told func(*recordv1.JournalEntry) (done bool)) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 1<<16)
	var whole int64
	var header [headerBytes]byte
	var body []byte
	for {
		if _, err := io.ReadFull(in, header[:]); err != nil {
			return whole, torn(err)
		}
		size := binary.BigEndian.Uint32(header[:])
		if size > maxRecord {
			return whole, nil
		}
		body = slices.Grow(body[:0], int(size))[:size]
		if _, err := io.ReadFull(in, body); err != nil {
			return whole, torn(err)
		}
		e := &recordv1.JournalEntry{}
		if crc32.Checksum(body, castagnoli()) != binary.BigEndian.Uint32(header[4:]) || proto.Unmarshal(body, e) != nil {
			return whole, nil
		}
		whole += headerBytes + int64(size)
		if told(e) {
			return whole, nil
		}
	}
}

// torn is the error of a read, none where the file has ended.
func torn(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// segments are the numbers of the segments in a directory, oldest first.
func segments(dir string) ([]uint64, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, f := range files {
		digits, ok := strings.CutSuffix(f.Name(), suffix)
		if n, err := strconv.ParseUint(digits, 10, 64); ok && err == nil && segmentName(n) == f.Name() {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

func segmentName(n uint64) string { return fmt.Sprintf("%020d%s", n, suffix) }

func (j *Journal) path(n uint64) string { return filepath.Join(j.cfg.Dir, segmentName(n)) }
