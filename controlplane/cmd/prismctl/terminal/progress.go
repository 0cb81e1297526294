package terminal

import (
	"cmp"
	"fmt"
	"io"
	"strings"
)

// Progress shows how far things are. On a terminal each thing has a line that changes in place; elsewhere every change
// is a line of its own.
type Progress struct {
	w     io.Writer
	live  bool
	width int
	names []string
	texts map[string]string
	drawn int // lines on the screen
}

// Progress starts a display beside the results.
func (t *Terminal) Progress() *Progress {
	return &Progress{w: t.Err, live: t.ErrTTY, width: cmp.Or(t.Width, 80), texts: map[string]string{}}
}

// Show says how far one thing is.
func (p *Progress) Show(name, text string) {
	text = Clean(text)
	old, known := p.texts[name]
	if known && old == text {
		return
	}
	if !known {
		p.names = append(p.names, name)
	}
	p.texts[name] = text
	if !p.live {
		fmt.Fprintf(p.w, "%s: %s\n", name, text)
		return
	}
	var out strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&out, "\x1b[%dA", p.drawn) // up to the first line
	}
	for _, n := range p.names {
		fmt.Fprintf(&out, "\r\x1b[K%s\n", p.fit(n+": "+p.texts[n]))
	}
	p.drawn = len(p.names)
	_, _ = io.WriteString(p.w, out.String()) // nobody watches any more
}

// fit cuts a line, because one that wraps would be two when the cursor goes up.
func (p *Progress) fit(line string) string {
	if runes := []rune(line); len(runes) >= p.width {
		return string(runes[:p.width-2]) + "…"
	}
	return line
}
