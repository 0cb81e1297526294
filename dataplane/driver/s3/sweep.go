package s3

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// sweepEvery is about how often a proxy looks for large objects that nobody finishes any more.
const sweepEvery = 10 * time.Minute

// sweeper removes the parts of large objects that nobody finishes any more, until Close.
func (i *Instance) sweeper() {
	for {
		select {
		case <-time.After(sweepEvery/2 + rand.N(sweepEvery)):
		case <-i.living.Done():
			return
		}
		if i.trusted.Load() { // who does not write does not sweep
			i.SweepParts(i.living, unfinishedLife) // what it could not do the next one does
		}
	}
}

// SweepParts removes what was begun longer ago than age, by the store's clock, and not finished. It says how many large
// objects that were.
func (i *Instance) SweepParts(ctx context.Context, age time.Duration) (int, error) {
	swept := 0
	in := &s3.ListMultipartUploadsInput{Bucket: &i.bucket}
	if i.prefix != "" {
		in.Prefix = &i.prefix
	}
	for {
		c, f := i.begin(ctx, maxWait)
		if f != nil {
			return swept, f
		}
		out, err := i.client.ListMultipartUploads(c.ctx, in)
		if err != nil {
			f := c.fault(err)
			c.end()
			return swept, f
		}
		now, ok := awsmiddleware.GetServerTime(out.ResultMetadata)
		for _, u := range out.Uploads {
			if !ok || now.Sub(aws.ToTime(u.Initiated)) < age {
				continue
			}
			if _, err := i.client.AbortMultipartUpload(c.ctx, &s3.AbortMultipartUploadInput{Bucket: &i.bucket, Key: u.Key, UploadId: u.UploadId}); err == nil {
				swept++
			}
		}
		c.end()
		if !aws.ToBool(out.IsTruncated) {
			return swept, nil
		}
		in.KeyMarker, in.UploadIdMarker = out.NextKeyMarker, out.NextUploadIdMarker
	}
}
