-- Learn which turns to wake in the place of one that no longer sleeps.
-- Returns conversations to wake.
-- include: clock model
return woken(false)
