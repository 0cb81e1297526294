// Package secret holds text that must not be printed.
package secret

import "log/slog"

// Text is a secret. Printing, logging and marshalling it give a placeholder, also from inside other values. The zero
// value is empty.
type Text struct{ text *string }

// New makes a secret of s.
func New(s string) Text { return Text{text: &s} }

// Reveal returns the text, for the one call that needs it.
func (t Text) Reveal() string {
	if t.text == nil {
		return ""
	}
	return *t.text
}

// IsZero reports whether there is no text.
func (t Text) IsZero() bool { return t.text == nil || *t.text == "" }

// String returns a placeholder.
func (Text) String() string { return "[secret]" }

// GoString returns a placeholder.
func (Text) GoString() string { return "[secret]" }

// LogValue returns a placeholder.
func (Text) LogValue() slog.Value { return slog.StringValue("[secret]") }

// MarshalText returns a placeholder.
func (Text) MarshalText() ([]byte, error) { return []byte("[secret]"), nil }
