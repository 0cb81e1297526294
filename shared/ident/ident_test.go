package ident_test

import (
	"strings"
	"testing"

	"github.com/prism-gateway/prism/shared/ident"
)

func TestParseSlot(t *testing.T) {
	s, err := ident.ParseSlot("storage-redis")
	if err != nil || s.Purpose() != "storage" || s.BackendType() != "redis" || s.String() != "storage-redis" {
		t.Fatalf("got %v, %v", s, err)
	}
	for _, bad := range []string{"", "storage", "storage-", "-redis", "storage-redis-1", "Storage-redis", "storage_redis"} {
		if _, err := ident.ParseSlot(bad); err == nil {
			t.Errorf("ParseSlot(%q): no error", bad)
		}
	}
}

func TestPartitionTextIsCanonical(t *testing.T) {
	for _, p := range []ident.Partition{0, 7, 1023, 16383} {
		got, err := ident.ParsePartition(p.String())
		if err != nil || got != p {
			t.Errorf("%v came back as %v, %v", p, got, err)
		}
	}
	for _, bad := range []string{"", "p/", "p/1", "p/00001", "q/0001", "p/-001", "p/0001/", "p/99999999999"} {
		if _, err := ident.ParsePartition(bad); err == nil {
			t.Errorf("ParsePartition(%q): no error", bad)
		}
	}
}

func TestPartitionOfIsFixedForLife(t *testing.T) {
	// These numbers are stored in every installation: a change of the hash would lose every namespace.
	for name, want := range map[string]ident.Partition{"user-profiles": 673, "orders": 885, "abc": 409} {
		if got := ident.PartitionOf(name, 1024); got != want {
			t.Errorf("PartitionOf(%q, 1024) = %d, want %d", name, got, want)
		}
	}
}

func TestHash(t *testing.T) {
	h := ident.HashOf([]byte("x"))
	if got, err := ident.ParseHash(h.String()); err != nil || got != h {
		t.Errorf("text: %v, %v", got, err)
	}
	if got, err := ident.HashFrom(h.Bytes()); err != nil || got != h {
		t.Errorf("bytes: %v, %v", got, err)
	}
	var zero ident.Hash
	if zero.String() != "" || zero.Bytes() != nil || !zero.IsZero() || h.IsZero() {
		t.Error("the zero hash is not nothing")
	}
	for _, bad := range []string{"0", "zz", strings.Repeat("0", 63)} {
		if _, err := ident.ParseHash(bad); err == nil {
			t.Errorf("ParseHash(%q): no error", bad)
		}
	}
	if _, err := ident.HashFrom([]byte{1}); err == nil {
		t.Error("HashFrom of one byte: no error")
	}
}
